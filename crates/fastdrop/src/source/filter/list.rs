//! A list of paths, in which each look-up is a binary search.

use fastdrop_proto::fastdp::{PathError, RelPath};
use std::cmp::Ordering;

/// Paths that were named one by one.
#[derive(Debug, Clone)]
pub(super) struct PathList {
    /// All of them, ascending component by component.
    paths: Vec<Vec<u8>>,
    /// Those that are not beneath another one: so the only one that may be
    /// above a path is the last before it.
    tops: Vec<Vec<u8>>,
    /// The ones that no entry can have.
    bad: Vec<(Vec<u8>, PathError)>,
}

/// The place of a path in respect of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// Listed, or beneath a listed one.
    Within,
    /// A listed one is beneath it.
    Above,
    /// Neither.
    Apart,
}

impl PathList {
    pub(super) fn new(listed: Vec<Vec<u8>>) -> Self {
        let mut bad = Vec::new();
        let mut paths = Vec::with_capacity(listed.len());
        for path in listed {
            match RelPath::new(&path) {
                Ok(_) => paths.push(path),
                Err(error) => bad.push((path, error)),
            }
        }
        paths.sort_unstable_by(|a, b| compare(a, b));
        paths.dedup();
        let mut tops: Vec<Vec<u8>> = Vec::new();
        for path in &paths {
            if !tops.last().is_some_and(|top| is_beneath(path, top)) {
                tops.push(path.clone());
            }
        }
        Self { paths, tops, bad }
    }

    pub(super) fn relation(&self, path: RelPath<'_>) -> Relation {
        let path = path.as_bytes();
        let after = self.tops.partition_point(|top| compare(top, path) != Ordering::Greater);
        let before = after.checked_sub(1).and_then(|at| self.tops.get(at));
        if before.is_some_and(|top| top == path || is_beneath(path, top)) {
            Relation::Within
        } else if self.tops.get(after).is_some_and(|top| is_beneath(top, path)) {
            Relation::Above
        } else {
            Relation::Apart
        }
    }

    /// The listed paths that are not among `there`, ascending.
    pub(super) fn missing<'a>(
        &'a self,
        there: impl Iterator<Item = RelPath<'a>>,
    ) -> impl Iterator<Item = &'a [u8]> {
        let mut found = vec![false; self.paths.len()];
        for path in there {
            let place = self.paths.binary_search_by(|listed| compare(listed, path.as_bytes()));
            if let Some(found) = place.ok().and_then(|at| found.get_mut(at)) {
                *found = true;
            }
        }
        let missing = self.paths.iter().zip(found).filter(|(_, found)| !found);
        missing.map(|(path, _)| &path[..])
    }

    /// The ones that no entry can have, with the reason.
    pub(super) fn bad(&self) -> impl Iterator<Item = (&[u8], PathError)> {
        self.bad.iter().map(|(path, error)| (&path[..], *error))
    }
}

fn is_beneath(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// The order of `RelPath`: no name has a NUL, so a slash that counts as one
/// ends a component before anything else.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    #[cfg(test)]
    tests::COMPARISONS.with(|count| count.set(count.get() + 1));
    let order = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(order).cmp(b.iter().map(order))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    thread_local! {
        pub(super) static COMPARISONS: Cell<u64> = const { Cell::new(0) };
    }

    /// Paths of few names, so that many are equal or beneath each
    /// other; one sorts before the slash.
    fn path() -> impl Strategy<Value = Vec<u8>> {
        let name = prop::sample::select(vec!["a", "b", "a!", "ab", "."]);
        prop::collection::vec(name, 1..4).prop_map(|names| names.join("/").into_bytes())
    }

    /// The definition, without any order.
    fn naive(listed: &[Vec<u8>], path: &[u8]) -> Relation {
        let valid = || listed.iter().filter(|listed| RelPath::new(listed).is_ok());
        if valid().any(|listed| listed == path || is_beneath(path, listed)) {
            Relation::Within
        } else if valid().any(|listed| is_beneath(listed, path)) {
            Relation::Above
        } else {
            Relation::Apart
        }
    }

    proptest! {
        #[test]
        fn a_path_is_within_above_or_apart_as_defined(
            listed in prop::collection::vec(path(), 0..12),
            asked in prop::collection::vec(path(), 1..12),
        ) {
            let list = PathList::new(listed.clone());
            for path in asked.iter().filter_map(|path| RelPath::new(path).ok()) {
                prop_assert_eq!(list.relation(path), naive(&listed, path.as_bytes()), "{:?}", path);
            }
            let there: Vec<_> = asked.iter().filter_map(|path| RelPath::new(path).ok()).collect();
            let missing: Vec<_> = list.missing(there.iter().copied()).collect();
            for path in listed.iter().filter(|path| RelPath::new(path).is_ok()) {
                prop_assert_eq!(missing.contains(&&path[..]), !asked.contains(path));
            }
            let bad = listed.iter().filter(|path| RelPath::new(path).is_err()).count();
            prop_assert_eq!(list.bad().count(), bad);
        }

        #[test]
        fn the_order_is_that_of_paths(a in path(), b in path()) {
            if let (Ok(first), Ok(second)) = (RelPath::new(&a), RelPath::new(&b)) {
                prop_assert_eq!(compare(&a, &b), first.cmp(&second));
            }
        }
    }

    #[test]
    fn a_long_list_takes_few_comparisons_a_path() {
        for count in [1_000_u64, 100_000] {
            let name = |number: u64| format!("d{}/e{}/f{number}", number % 7, number % 91).into_bytes();
            let listed: Vec<_> = (0..count).map(|number| name(number * 7919 % count)).collect();
            COMPARISONS.with(|comparisons| comparisons.set(0));
            let list = PathList::new(listed.clone());
            let there = || listed.iter().map(|path| RelPath::new(path).unwrap());
            assert!(there().all(|path| list.relation(path) == Relation::Within));
            assert_eq!(list.missing(there()).count(), 0);
            let comparisons = COMPARISONS.with(Cell::get);
            // Sorting, a look-up for each path and another one for whether it is
            // there: each some log2 of the count.
            let bound = 4 * count * u64::from(count.ilog2() + 1);
            assert!(comparisons < bound, "{comparisons} comparisons for {count} paths, bound {bound}");
        }
    }
}
