//! Targets, keys and authorities: a key gives back the target that it was made of, and no two targets one key.

use std::borrow::Cow;

use groupcache_proxy::peer::go;
use groupcache_proxy::semantics::key::{KeyTemplate, origin_target};
use groupcache_proxy::semantics::query::{NamePattern, QueryRule};
use groupcache_proxy::semantics::target::{Authority, TARGET_BYTES_MAX, Target};

pub(super) fn hold(data: &[u8]) {
    let text = data.strip_suffix(b"\n").unwrap_or(data);
    if let Ok(target) = Target::parse(text) {
        the_parts_are_the_whole(text, &target);
        keys_lead_back(&target);
    }
    any_bytes_as_a_key(text);
    authority(text);
}

fn written(path: &[u8], query: Option<&[u8]>) -> Vec<u8> {
    let query = query.map(|query| [b"?", query].concat()).unwrap_or_default();
    [path, &query].concat()
}

fn the_parts_are_the_whole(text: &[u8], target: &Target<'_>) {
    assert!(text.len() <= TARGET_BYTES_MAX && target.path.starts_with(b"/"));
    let path_and_query = written(target.path, target.query);
    match &target.site {
        None => assert_eq!(path_and_query, text),
        Some((_, authority)) => {
            assert!(super::mentions(text, &authority.host));
            assert!(text.ends_with(&path_and_query) || target.path == b"/");
        }
    }
    let again = Target::parse(&path_and_query).expect("a target that was accepted");
    assert_eq!((again.path, again.query), (target.path, target.query));
    // No reader of the path, decoding it or not, leaves the folder.
    let decoded = percent_encoding_removed(target.path);
    for path in [target.path, &decoded] {
        let segments = path.split(|&byte| byte == b'/');
        let outside = segments.filter(|segment| matches!(*segment, b"." | b"..")).count();
        assert!(outside == 0 || super::mentions(target.path, "%2f"), "{:?}", String::from_utf8_lossy(text));
    }
}

fn percent_encoding_removed(path: &[u8]) -> Vec<u8> {
    let (mut decoded, mut rest) = (Vec::new(), path);
    while let Some((&byte, behind)) = rest.split_first() {
        let hexadecimal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        match behind.get(..2).and_then(hexadecimal).filter(|_| byte == b'%') {
            Some(escaped) => {
                decoded.push(escaped);
                rest = &behind[2..];
            }
            None => {
                decoded.push(byte);
                rest = behind;
            }
        }
    }
    decoded
}

fn rules() -> [QueryRule; 5] {
    let patterns = |names: [&str; 2]| names.map(NamePattern::parse).to_vec();
    [
        QueryRule::Keep,
        QueryRule::Drop,
        QueryRule::Sort,
        QueryRule::Only(patterns(["w", "a*"])),
        QueryRule::Except(patterns(["utm_*", "w"])),
    ]
}

fn keys_lead_back(target: &Target<'_>) {
    let rest = &target.path[1..];
    for rule in rules() {
        let query = rule.apply(target.query);
        assert_eq!(rule.apply(query.as_deref()), query.clone(), "{rule:?} twice is not {rule:?} once");
        let before = target.query.map(parameters).unwrap_or_default();
        let after = query.as_deref().map(parameters).unwrap_or_default();
        assert!(after.iter().all(|parameter| before.contains(parameter)), "{rule:?} invents a parameter");
        for prefix in ["", "/", "p:"] {
            let template = KeyTemplate::with_prefix(prefix).unwrap();
            let key = template.key(rest, query.as_deref());
            let (back, back_query) = template.split(&key).expect("a key made of a target");
            assert_eq!((back, back_query.map(Cow::Borrowed)), (rest, query.clone()));
            for base in ["", "/", "/base"] {
                let asked = origin_target(base, back, back_query);
                if asked.len() <= TARGET_BYTES_MAX {
                    let asked = Target::parse(&asked).expect("a target for the origin");
                    assert!(asked.site.is_none() && asked.path.starts_with(base.as_bytes()));
                    assert_eq!(asked.query, query.as_deref());
                }
            }
        }
    }
}

fn parameters(query: &[u8]) -> Vec<&[u8]> {
    query.split(|&byte| byte == b'&').collect()
}

/// As a peer or a purge may send it.
fn any_bytes_as_a_key(key: &[u8]) {
    for prefix in ["", "/", "p:"] {
        let template = KeyTemplate::with_prefix(prefix).unwrap();
        let Ok((rest, query)) = template.split(key) else { continue };
        assert_eq!(template.key(rest, query), key);
        let asked = origin_target("", rest, query);
        assert!(asked.len() > TARGET_BYTES_MAX || Target::parse(&asked).is_ok());
    }
    if go::go_can_carry(key) {
        let go_key = go::go_key(key).expect("a key that Go can carry");
        assert_eq!(go::key_from_go(&go_key), key);
    }
}

fn authority(text: &[u8]) {
    let Ok(authority) = Authority::parse(text) else { return };
    let printed = authority.to_string();
    assert_eq!(Authority::parse(printed.as_bytes()).as_ref(), Ok(&authority));
    assert!(!printed.bytes().any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii_graphic()));
    assert!(!printed.contains(['/', '@', '?', '#', '\\', '%']), "{printed}");
    assert!(authority.is_same_site(&authority.clone().into_owned(), 80));
}
