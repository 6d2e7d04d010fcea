//! Which group a request belongs to: by host, then by the longest path prefix of whole segments.

use hashbrown::HashMap;

use super::target::check_path;

/// Which requests belong to a group (`match` in the configuration).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchRule {
    /// Any of these hosts; empty: every host.
    pub hosts: Vec<HostPattern>,
    /// Whole segments of the target's bytes, from its first `/`; with or without a `/` at the end.
    pub path: String,
}

/// One host of a [`MatchRule`], without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This name or address.
    Exact(String),
    /// Written `*.example.com`: every name that ends with this text, which begins with a point.
    Suffix(String),
}

impl HostPattern {
    /// Reads `NAME` or `*.NAME`, in any case.
    pub fn parse(pattern: &str) -> Self {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => HostPattern::Suffix(suffix.to_owned()),
            _ => HostPattern::Exact(pattern),
        }
    }
}

/// Finds groups, named by their place in the list from which the router was made.
///
/// The most specific host is asked first: a name, then the longest `*.NAME`, then the groups for every host. Within
/// each, the longest prefix wins; if none fits, the next less specific host is asked.
#[derive(Clone, Debug, Default)]
pub struct Router {
    exact: HashMap<Box<str>, Vec<Prefix>>,
    /// Longest suffix first.
    suffixes: Vec<(Box<str>, Vec<Prefix>)>,
    every_host: Vec<Prefix>,
}

/// A path prefix and its group; in lists, the longest comes first.
#[derive(Clone, Debug)]
struct Prefix {
    /// Ends with `/`.
    path: Box<[u8]>,
    group: usize,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// Place of the group in the list from which the router was made.
    pub group: usize,
    /// What follows the group's prefix in the path.
    pub rest: &'a [u8],
}

/// Why a request belongs to no group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No group serves this host: 421.
    UnknownHost,
    /// Groups serve this host, but none this path: 404.
    UnknownPath,
}

/// Rules of which no router can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouterError {
    /// Two groups match the same host and path; the places of both.
    #[error("two groups match the same host and path")]
    Ambiguous(usize, usize),
    /// The path of the group at this place does not begin with `/`, or no target could match it.
    #[error("a path to match begins with / and holds only what a request target may hold")]
    BadPath(usize),
}

impl Router {
    /// Makes a router; groups are named by their place in `rules`.
    pub fn new<'r>(rules: impl IntoIterator<Item = &'r MatchRule>) -> Result<Self, RouterError> {
        let mut router = Router::default();
        for (group, rule) in rules.into_iter().enumerate() {
            if !rule.path.starts_with('/') || check_path(rule.path.as_bytes()).is_err() {
                return Err(RouterError::BadPath(group));
            }
            let mut path = rule.path.as_bytes().to_vec();
            if path.last() != Some(&b'/') {
                path.push(b'/');
            }
            let prefix = Prefix { path: path.into(), group };
            if rule.hosts.is_empty() {
                insert(&mut router.every_host, prefix.clone())?;
            }
            for host in &rule.hosts {
                insert(router.prefixes_of(host), prefix.clone())?;
            }
        }
        router.suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Ok(router)
    }

    fn prefixes_of(&mut self, host: &HostPattern) -> &mut Vec<Prefix> {
        match host {
            HostPattern::Exact(name) => self.exact.entry(name.as_str().into()).or_default(),
            HostPattern::Suffix(suffix) => {
                let place = self.suffixes.iter().position(|(known, _)| **known == **suffix).unwrap_or_else(|| {
                    self.suffixes.push((suffix.as_str().into(), Vec::new()));
                    self.suffixes.len() - 1
                });
                &mut self.suffixes[place].1
            }
        }
    }

    /// The group of a path; `host` is in lower case and without port, as [`super::target::Authority`] has it.
    pub fn find<'a>(&self, host: &str, path: &'a [u8]) -> Result<Route<'a>, NoRoute> {
        // A name with a point at its end is the same name, written in full.
        let host = host.strip_suffix('.').unwrap_or(host);
        if self.exact.is_empty() && self.suffixes.is_empty() && !self.every_host.is_empty() {
            // The usual configuration names no host.
            return self.every_host.iter().find_map(|prefix| prefix.strip_from(path)).ok_or(NoRoute::UnknownPath);
        }
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host) };
        let suffixes = self
            .suffixes
            .iter()
            .filter(|(suffix, _)| host.len() > suffix.len() && host.ends_with(&**suffix))
            .map(|(_, prefixes)| prefixes);
        let every_host = Some(&self.every_host).filter(|prefixes| !prefixes.is_empty());
        let mut known_host = false;
        for prefixes in exact.into_iter().chain(suffixes).chain(every_host) {
            known_host = true;
            if let Some(route) = prefixes.iter().find_map(|prefix| prefix.strip_from(path)) {
                return Ok(route);
            }
        }
        Err(if known_host { NoRoute::UnknownPath } else { NoRoute::UnknownHost })
    }
}

impl Prefix {
    fn strip_from<'a>(&self, path: &'a [u8]) -> Option<Route<'a>> {
        let rest = match path.strip_prefix(&self.path[..]) {
            Some(rest) => rest,
            // `/a` is asked of the group `/a/`, and its origin, like `/a/`, for nothing below the origin's own path.
            None if self.path.strip_suffix(b"/") == Some(path) => &[],
            None => return None,
        };
        Some(Route { group: self.group, rest })
    }
}

fn insert(prefixes: &mut Vec<Prefix>, prefix: Prefix) -> Result<(), RouterError> {
    if let Some(same) = prefixes.iter().find(|known| known.path == prefix.path) {
        if same.group == prefix.group {
            return Ok(());
        }
        return Err(RouterError::Ambiguous(same.group, prefix.group));
    }
    let place = prefixes.partition_point(|known| known.path.len() >= prefix.path.len());
    prefixes.insert(place, prefix);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(hosts: &[&str], path: &str) -> MatchRule {
        MatchRule { hosts: hosts.iter().map(|host| HostPattern::parse(host)).collect(), path: path.to_owned() }
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let router = Router::new(&[rule(&[], "/"), rule(&[], "/thumbnails/"), rule(&[], "/thumbnails/large")]).unwrap();
        for (path, group, rest) in [
            ("/", 0, ""),
            ("/a", 0, "a"),
            ("//a", 0, "/a"),
            ("/thumbnails", 1, ""),
            ("/thumbnails/", 1, ""),
            ("/thumbnails/a.jpg", 1, "a.jpg"),
            ("/thumbnails//a", 1, "/a"),
            ("/thumbnailsX", 0, "thumbnailsX"),
            ("/Thumbnails/a", 0, "Thumbnails/a"),
            ("/%74humbnails/a", 0, "%74humbnails/a"),
            ("/thumbnails/large", 2, ""),
            ("/thumbnails/large/a", 2, "a"),
            ("/thumbnails/larger/a", 1, "larger/a"),
        ] {
            assert_eq!(router.find("any", path.as_bytes()), Ok(Route { group, rest: rest.as_bytes() }), "{path}");
        }
    }

    #[test]
    fn the_most_specific_host_is_asked_first() {
        let rules = [
            rule(&["Example.com", "www.example.com"], "/"),
            rule(&["*.example.com"], "/"),
            rule(&["*.img.example.com"], "/a/"),
            rule(&["example.org"], "/a/"),
            rule(&["[::1]"], "/"),
        ];
        let router = Router::new(&rules).unwrap();
        for (host, path, expected) in [
            ("example.com", "/x", Ok(0)),
            ("example.com.", "/x", Ok(0)),
            ("www.example.com", "/x", Ok(0)),
            ("other.example.com", "/x", Ok(1)),
            ("a.b.example.com", "/x", Ok(1)),
            ("x.img.example.com", "/a/b", Ok(2)),
            ("x.img.example.com", "/b", Ok(1)),
            ("img.example.com", "/a/b", Ok(1)),
            ("example.org", "/a/b", Ok(3)),
            ("example.org", "/b", Err(NoRoute::UnknownPath)),
            ("[::1]", "/", Ok(4)),
            ("badexample.com", "/", Err(NoRoute::UnknownHost)),
            (".example.com", "/", Err(NoRoute::UnknownHost)),
            ("", "/", Err(NoRoute::UnknownHost)),
        ] {
            assert_eq!(router.find(host, path.as_bytes()).map(|route| route.group), expected, "{host}{path}");
        }
    }

    #[test]
    fn groups_for_every_host_serve_what_is_left() {
        let router = Router::new(&[rule(&["a"], "/x/"), rule(&[], "/"), rule(&[], "/x/y/")]).unwrap();
        for (host, path, group) in [("a", "/x/y/z", 0), ("a", "/y", 1), ("b", "/x/y/z", 2), ("b", "/x/z", 1)] {
            assert_eq!(router.find(host, path.as_bytes()).map(|route| route.group), Ok(group), "{host}{path}");
        }
    }

    #[test]
    fn mistakes_are_found() {
        assert_eq!(
            Router::new(&[rule(&["a"], "/x"), rule(&["b", "A"], "/x/")]).unwrap_err(),
            RouterError::Ambiguous(0, 1)
        );
        assert_eq!(Router::new(&[rule(&["*.a"], "/"), rule(&["*.a"], "/")]).unwrap_err(), RouterError::Ambiguous(0, 1));
        assert!(Router::new(&[rule(&["a", "a"], "/"), rule(&["*.a"], "/"), rule(&[], "/")]).is_ok());
        for path in ["", "a", "/a b", "/../", "/%2e/", "/a?b", "/%"] {
            assert_eq!(
                Router::new(&[rule(&[], "/"), rule(&[], path)]).unwrap_err(),
                RouterError::BadPath(1),
                "{path:?}"
            );
        }
    }

    proptest! {
        /// The naive model: of all prefixes that match on whole segments, the longest.
        #[test]
        fn routing_agrees_with_comparing_segments(
            prefixes in prop::collection::hash_set("(/[ab]{1,2}){0,3}", 0..5), path in "(/[ab]{0,2}){1,4}"
        ) {
            let prefixes: Vec<String> = prefixes.into_iter().collect();
            let rules: Vec<MatchRule> = prefixes.iter()
                .map(|prefix| rule(&[], if prefix.is_empty() { "/" } else { prefix })).collect();
            let router = Router::new(&rules).unwrap();
            let segments: Vec<&str> = path.split('/').collect();
            let expected = (0..prefixes.len())
                .filter(|&n| segments.starts_with(&prefixes[n].split('/').collect::<Vec<_>>()))
                .max_by_key(|&n| prefixes[n].len());
            let found = router.find("a", path.as_bytes());
            prop_assert_eq!(found.ok().map(|route| route.group), expected);
            if let Ok(route) = found {
                // Group and rest give the path back, but for the slash that ends a group's prefix.
                let again = format!("{}/{}", prefixes[route.group], std::str::from_utf8(route.rest).unwrap());
                let with_slash = path.clone() + "/";
                prop_assert!(again == path || (route.rest.is_empty() && again == with_slash));
            }
        }

        #[test]
        fn no_bytes_upset_the_router(host in ".{0,10}", path in prop::collection::vec(any::<u8>(), 0..20)) {
            let router = Router::new(&[rule(&["*.a"], "/a/"), rule(&["a"], "/"), rule(&[], "/b")]).unwrap();
            let _ = router.find(&host, &path);
        }
    }
}
