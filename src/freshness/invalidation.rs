//! What a successful unsafe request makes invalid (RFC 9111 section 4.4), and the URI references that takes
//! (RFC 3986 section 5).

use crate::fields::Fields;

/// What a request asks for, as the origin sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Host and port under which the origin knows itself: the Host sent to it, and, where it differs, the client's.
    pub authorities: &'a [&'a str],
    /// Path and query in origin form (RFC 9112 section 3.2.1), which starts with a slash.
    pub path: &'a str,
}

/// Paths with query, in origin form and without dot segments, whose stored responses a response makes invalid. The target
/// comes first; `Location` and `Content-Location` follow where they are on the same host.
///
/// A safe method invalidates nothing, a method that we do not know counts as unsafe, and an error invalidates nothing.
/// Scheme is not compared: the proxy has one cache for both, and an origin behind it often does not know the client's.
pub fn invalidated_by(method: &str, status: u16, target: &Target<'_>, response: &Fields) -> Vec<String> {
    if is_safe(method) || !(200..400).contains(&status) {
        return Vec::new();
    }
    let mut paths = vec![without_fragment(target.path).to_owned()];
    for name in ["location", "content-location"] {
        for reference in response.get_all(name).filter_map(|value| std::str::from_utf8(value).ok()) {
            if let Some(path) = resolve(target, reference).filter(|path| !paths.contains(path)) {
                paths.push(path);
            }
        }
    }
    paths
}

/// Whether a response says that it is what a GET of the target would give (RFC 9110 section 8.7).
pub fn content_location_is_target(target: &Target<'_>, response: &Fields) -> bool {
    let mut lines = response.get_all("content-location");
    let (Some(reference), None) = (lines.next(), lines.next()) else { return false };
    let resolved = std::str::from_utf8(reference).ok().and_then(|reference| resolve(target, reference));
    resolved.is_some() && resolved == resolve(target, "")
}

/// Methods that are registered as safe; they are case-sensitive (RFC 9110 section 9.1).
pub fn is_safe(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PROPFIND" | "REPORT" | "SEARCH" | "QUERY")
}

/// The path and query that `reference` means, seen from `target`; `None` where it means another host.
fn resolve(target: &Target<'_>, reference: &str) -> Option<String> {
    let reference = without_fragment(reference.trim_ascii());
    if let Some((scheme, rest)) = split_scheme(reference) {
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => return None,
        };
        return on_same_host(target, rest.strip_prefix("//")?, &[default_port]);
    }
    if let Some(rest) = reference.strip_prefix("//") {
        return on_same_host(target, rest, &[":80", ":443"]);
    }
    let base = without_fragment(target.path);
    let (base_path, _) = split_query(base);
    Some(match reference.as_bytes().first() {
        None => normalised(base),
        Some(b'/') => normalised(reference),
        Some(b'?') => normalised(&format!("{base_path}{reference}")),
        Some(_) => {
            let folder = base_path.rfind('/').map_or("/", |slash| &base_path[..=slash]);
            normalised(&format!("{folder}{reference}"))
        }
    })
}

/// `rest` starts with an authority. Ports are compared with the default one left out on both sides.
fn on_same_host(target: &Target<'_>, rest: &str, default_ports: &[&str]) -> Option<String> {
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let plain = |authority: &str| {
        let authority = authority.to_ascii_lowercase();
        let port = default_ports.iter().find(|port| authority.ends_with(**port));
        port.map_or(authority.clone(), |port| authority[..authority.len() - port.len()].to_owned())
    };
    let known = target.authorities.iter().any(|own| !own.is_empty() && plain(own) == plain(authority));
    let slash = if path.starts_with('/') { "" } else { "/" };
    known.then(|| normalised(&format!("{slash}{path}")))
}

fn split_scheme(reference: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = reference.split_once(':')?;
    let mut bytes = scheme.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    (starts && goes_on).then_some((scheme, rest))
}

fn split_query(path: &str) -> (&str, &str) {
    path.split_at(path.find('?').unwrap_or(path.len()))
}

fn without_fragment(reference: &str) -> &str {
    reference.split('#').next().unwrap_or_default()
}

/// Takes dot segments out of the path (RFC 3986 section 5.2.4), in linear time; the query stays as it is.
fn normalised(path_and_query: &str) -> String {
    let (path, query) = split_query(path_and_query);
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TARGET: Target<'_> = Target { authorities: &["Images.internal:9000", "www.example.com"], path: "/a/b/c?d=1" };

    #[test]
    fn what_an_unsafe_request_invalidates() {
        let own = "/a/b/c?d=1";
        for (why, method, status, lines, expected) in [
            ("4.4 safe", "GET", 200, &["Location: /x"][..], &[][..]),
            ("9110 9.2.1 safe", "OPTIONS", 200, &[], &[]),
            ("4.4 unsafe", "POST", 200, &[], &[own]),
            ("4.4 unsafe", "DELETE", 204, &[], &[own]),
            ("4.4 unknown", "M-SEARCH", 200, &[], &[own]),
            ("9110 9.1 methods are case-sensitive", "get", 200, &[], &[own]),
            ("4.4 a redirect is no error", "PUT", 303, &[], &[own]),
            ("4.4 an error", "PUT", 500, &["Location: /x"], &[]),
            ("4.4 an error", "PUT", 404, &[], &[]),
            ("4.4 both fields", "POST", 201, &["Location: /x", "Content-Location: /y?z"], &[own, "/x", "/y?z"]),
            ("4.4 once", "POST", 201, &["Location: /a/b/c?d=1"], &[own]),
            ("3986 5.2 relative", "POST", 201, &["Location: x"], &[own, "/a/b/x"]),
            ("3986 5.2 relative", "POST", 201, &["Location: ../x/./y/../?q=/../z"], &[own, "/a/x/?q=/../z"]),
            ("3986 5.2 out of the root", "POST", 201, &["Location: ../../../../x"], &[own, "/x"]),
            ("3986 5.2 query alone", "POST", 201, &["Location: ?e"], &[own, "/a/b/c?e"]),
            ("3986 5.2 no fragment", "POST", 201, &["Location: /x#y?z"], &[own, "/x"]),
            ("4.4 same host", "POST", 201, &["Location: http://images.INTERNAL:9000/x"], &[own, "/x"]),
            ("4.4 same host, default port", "POST", 201, &["Location: https://www.example.com:443"], &[own, "/"]),
            ("4.4 same host, no scheme", "POST", 201, &["Location: //www.example.com?q"], &[own, "/?q"]),
            ("4.4 another port", "POST", 201, &["Location: http://images.internal/x"], &[own]),
            ("4.4 another port", "POST", 201, &["Location: http://www.example.com:443/x"], &[own]),
            ("4.4 another host", "POST", 201, &["Location: http://example.com/x", "Content-Location: //e/x"], &[own]),
            ("4.4 a name in front", "POST", 201, &["Location: http://www.example.com@evil/x"], &[own]),
            ("4.4 not http", "POST", 201, &["Location: urn:x", "Location: mailto:a@b"], &[own]),
        ] {
            let fields = Fields::from_pairs(lines.iter().map(|line| line.split_once(':').unwrap())).unwrap();
            assert_eq!(
                invalidated_by(method, status, &TARGET, &fields),
                expected,
                "{why}: {method} {status} {lines:?}"
            );
        }
    }

    #[test]
    fn a_content_location_that_is_the_target() {
        for (lines, expected) in [
            (&["Content-Location: /a/b/c?d=1"][..], true),
            (&["Content-Location: http://www.example.com/a/b/c?d=1"], true),
            (&["Content-Location:"], true),
            (&["Content-Location: c?d=1"], true),
            (&["Content-Location: /a/b/c"], false),
            (&["Content-Location: http://evil/a/b/c?d=1"], false),
            (&["Content-Location: /a/b/c?d=1", "Content-Location: /x"], false),
            (&[], false),
        ] {
            let fields = Fields::from_pairs(lines.iter().map(|line| line.split_once(':').unwrap())).unwrap();
            assert_eq!(content_location_is_target(&TARGET, &fields), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_location_says_the_result_is_a_clean_path(
            reference in "(https?:)?(//)?(www\\.example\\.com)?[/.?#:a%2eé-]{0,24}",
        ) {
            let fields = Fields::from_pairs([("Location", &reference)]).unwrap();
            for path in invalidated_by("POST", 200, &TARGET, &fields) {
                prop_assert!(path.starts_with('/'));
                let (path, _) = split_query(&path);
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{} from {}", path, reference);
            }
        }
    }
}
