//! Common parts of benchmarks: arguments, rounds in which contestants take turns, medians.

use std::time::Duration;

/// The arguments of a benchmark: `--rounds N --only NAME,NAME --who NAME,NAME --json FILE`, in any
/// order.
pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn of_this_process() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    /// The argument after the word `peer`, if this is the other process of a benchmark.
    pub fn of_peer(&self) -> Option<&[String]> {
        self.0.strip_prefix(&["peer".to_owned()])
    }

    pub fn value(&self, flag: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == flag)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// Rounds that count. Default 7.
    pub fn rounds(&self) -> usize {
        self.value("--rounds").map_or(7, |text| text.parse().unwrap())
    }

    /// Returns true if something of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.value("--only").is_none_or(|only| only.split(',').any(|part| name.contains(part)))
    }

    /// Returns true if this contestant takes part.
    pub fn has_part(&self, who: &str) -> bool {
        self.value("--who").is_none_or(|named| named.split(',').any(|part| who == part))
    }
}

/// Has each contestant measured once in every round, in another order each time, and once before,
/// which does not count. Gives what each of them had.
pub fn rounds<T>(count: usize, contestants: usize, mut measure: impl FnMut(usize) -> T) -> Vec<Vec<T>> {
    let mut measured: Vec<Vec<T>> = (0..contestants).map(|_| Vec::new()).collect();
    for round in 0..=count {
        for turn in 0..contestants {
            let at = (turn + round) % contestants;
            let figures = measure(at);
            if round > 0 {
                measured[at].push(figures);
            }
        }
    }
    measured
}

pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The median, 99 % and 99.9 % of times, in microseconds.
pub fn percentiles(mut times: Vec<Duration>) -> Vec<f64> {
    times.sort();
    [0.5, 0.99, 0.999].map(|part| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6).to_vec()
}
