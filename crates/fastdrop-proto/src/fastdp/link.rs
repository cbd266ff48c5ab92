//! The places to which a symbolic link may lead (section 5), judged by its text alone.

use super::path::{HIDDEN, PathError, RelPath};

/// Longest target in bytes: what Linux allows.
pub const TARGET_MAX: usize = 4095;
/// Most steps up behind a name in a target: each has to be looked up in the manifest.
const CLIMBS_MAX: usize = 16;

/// A path that must be a directory of the same manifest, for a link's text to say where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Climb {
    /// Relative to the transfer.
    pub(super) directory: Vec<u8>,
    /// Its topmost component stands in the target: the manifest must not be placed under another
    /// name then.
    pub(super) names_top: bool,
}

/// Checks that a link at `place` leads nowhere above the folder in which the manifest arrives.
/// Returns what this rests on.
pub(super) fn climbs(place: RelPath<'_>, target: &[u8]) -> Result<Vec<Climb>, PathError> {
    check_text(target)?;
    let mut at: Vec<&[u8]> = place.components().collect();
    at.pop();
    // How many of the components come from the link's own place.
    let mut own = at.len();
    let mut climbs = Vec::new();
    for component in target.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if at.len() > own {
                    if climbs.len() >= CLIMBS_MAX {
                        return Err(PathError::Escapes);
                    }
                    climbs.push(Climb { directory: at.join(&b'/'), names_top: own == 0 });
                }
                at.pop().ok_or(PathError::Escapes)?;
                own = own.min(at.len());
            }
            name => at.push(name),
        }
    }
    Ok(climbs)
}

/// Checks the rules that hold for every target.
fn check_text(target: &[u8]) -> Result<(), PathError> {
    if target.is_empty() {
        return Err(PathError::Empty);
    }
    if target.len() > TARGET_MAX {
        return Err(PathError::TooLong);
    }
    if target.contains(&0) {
        return Err(PathError::Nul);
    }
    if target.first() == Some(&b'/') {
        return Err(PathError::Escapes);
    }
    match target.split(|&byte| byte == b'/').any(|component| component == HIDDEN) {
        true => Err(PathError::Hidden),
        false => Ok(()),
    }
}

/// Checks a link by the rule for peers without the capability `links`: `..` only at the beginning.
/// Returns the topmost component that it leads to, if that is another than its own.
pub(super) fn base_reach<'a>(place: RelPath<'_>, target: &'a [u8]) -> Result<Option<&'a [u8]>, PathError> {
    check_text(target)?;
    // The folder that holds the link, counted from the level of the transfer.
    let mut depth = place.components().count() - 1;
    let mut across = None;
    let mut decided = depth > 0;
    let mut named = false;
    for component in target.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if named => return Err(PathError::Escapes),
            b".." => {
                depth = depth.checked_sub(1).ok_or(PathError::Escapes)?;
                decided = depth > 0;
            }
            name => {
                named = true;
                if depth == 0 {
                    (across, decided) = (Some(name), true);
                }
                depth += 1;
            }
        }
    }
    if decided { Ok(across) } else { Err(PathError::Escapes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> RelPath<'_> {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn case_48_a_link_leads_nowhere_above_the_folder_it_arrives_in() {
        let rests_on = |at: &str, target: &str| {
            let climbs = climbs(place(at), target.as_bytes()).ok()?;
            let each = |climb: Climb| {
                let slash = if climb.names_top { "/" } else { "" };
                format!("{slash}{}", String::from_utf8(climb.directory).unwrap())
            };
            Some(climbs.into_iter().map(each).collect::<Vec<_>>().join(" "))
        };
        let nothing = Some(String::new());
        for (at, target) in [
            ("link", "x"),
            ("link", "."),
            ("a/link", ".."),
            ("a/link", "../x"),
            ("a/b/link", "../../c/d"),
            ("a/b/link", "./x//y/"),
            ("a/link", "nowhere"),
        ] {
            assert_eq!(rests_on(at, target), nothing, "{at} -> {target}");
        }
        for (at, target, on) in [
            ("a/link", "x/../y", "a/x"),
            ("link", "x/../y", "/x"),
            ("a/link", "../b/c/../../d", "/b/c /b"),
            ("a/b/link", "../x/../y", "a/x"),
            ("a/b/link", "x/../../y", "a/b/x"),
        ] {
            assert_eq!(rests_on(at, target).as_deref(), Some(on), "{at} -> {target}");
        }
        for (at, target) in [
            ("link", ".."),
            ("link", "x/../.."),
            ("a/link", "../../x"),
            ("a/link", "/etc/passwd"),
            ("a/link", ""),
            ("a/link", "x/.fastdrop/y"),
            ("a/link", "x\0"),
        ] {
            assert_eq!(rests_on(at, target), None, "{at} -> {target}");
        }
        assert!(climbs(place("a"), "x/../".repeat(CLIMBS_MAX).as_bytes()).is_ok());
        assert!(climbs(place("a"), "x/../".repeat(CLIMBS_MAX + 1).as_bytes()).is_err());
        assert!(climbs(place("a"), &[b'x'; TARGET_MAX + 1]).is_err());
    }

    #[test]
    fn peers_of_the_base_get_only_links_that_go_up_first() {
        let reach = |at: &str, target: &'static str| base_reach(place(at), target.as_bytes()).ok();
        assert_eq!(reach("a/b/link", "file"), Some(None));
        assert_eq!(reach("a/b/link", "../c"), Some(None));
        assert_eq!(reach("a/b/link", "./x//y"), Some(None));
        assert_eq!(reach("a/b/link", "x/../y"), None);
        assert_eq!(reach("a/b/link", "x/.fastdrop/y"), None);
        assert_eq!(reach("a/b/link", "../../c/d"), Some(Some(&b"c"[..])));
        assert_eq!(reach("a/link", "../x"), Some(Some(&b"x"[..])));
        assert_eq!(reach("link", "x"), Some(Some(&b"x"[..])));
        assert_eq!(reach("a/link", ".."), None);
        assert_eq!(reach("link", "."), None);
        assert_eq!(reach("a/link", "../../x"), None);
    }
}
