//! `Vary`: two requests share a variant exactly when the fields that it names are the same.

use groupcache_proxy::fields::Fields;
use groupcache_proxy::freshness::{Exchange, RequestDirectives, Rules, Target, WhyNotStored, judge};
use groupcache_proxy::semantics::variant::VaryRule;

use super::NOW;

pub(super) fn hold(data: &[u8]) {
    let lines = super::lines(data);
    let mut sections = lines.split(|line| line.is_empty());
    let vary = sections.next().unwrap_or_default();
    let Some(response) = super::fields("vary", vary) else { return };
    let Some(first) = request(sections.next().unwrap_or_default()) else { return };
    let Some(second) = request(sections.next().unwrap_or_default()) else { return };
    let rule = VaryRule::parse(&response);
    the_rule_is_in_its_one_form(&rule, vary);
    requests_are_told_apart(&rule, &first, &second);
    more_names_never_join(vary, &first, &second);
    what_matches_nothing_is_not_stored(&rule, &response);
}

/// Header lines `name: value`.
fn request(lines: &[&[u8]]) -> Option<Fields> {
    let pairs = lines.iter().map(|line| {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        (&line[..colon], line.get(colon + 1..).unwrap_or_default())
    });
    Fields::from_pairs(pairs).ok()
}

fn the_rule_is_in_its_one_form(rule: &VaryRule, vary: &[&[u8]]) {
    let names = rule.names();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    assert!(names.iter().all(|name| groupcache_proxy::fields::is_token(name.as_bytes()) && &**name != "*"));
    assert!(names.iter().all(|name| !name.bytes().any(|byte| byte.is_ascii_uppercase())));
    assert_eq!(names.is_empty(), !matches!(rule, VaryRule::Fields(_)));
    let nothing = vary.iter().all(|line| line.iter().all(|byte| matches!(byte, b',' | b' ' | b'\t')));
    assert_eq!(*rule == VaryRule::None, nothing);
    if !names.is_empty() {
        let printed = names.join(", ");
        assert_eq!(VaryRule::parse(&super::fields("vary", &[printed.as_bytes()]).unwrap()), *rule);
    }
    // What cannot be read, and a star, fit nothing, wherever they stand.
    for member in ["*", "a b", "\"a\"", "(", "\u{e4}"] {
        let mut more = vary.to_vec();
        more.push(member.as_bytes());
        assert_eq!(VaryRule::parse(&super::fields("vary", &more).unwrap()), VaryRule::Any);
    }
}

fn requests_are_told_apart(rule: &VaryRule, first: &Fields, second: &Fields) {
    let (one, other) = (rule.variant_key(first), rule.variant_key(second));
    let same = rule.matches(first, second);
    assert_eq!(same, one.is_some() && one == other);
    assert_eq!(same, rule.matches(second, first));
    assert_eq!(rule.matches(first, first), *rule != VaryRule::Any);
    assert_eq!(one.as_ref().is_some_and(|key| key.is_empty()), *rule == VaryRule::None);
    for name in rule.names() {
        let letters = |sent: &Fields| -> Option<Vec<u8>> {
            let mut bytes: Vec<u8> =
                sent.get_all(name).flatten().copied().filter(|byte| !b", \t".contains(byte)).collect();
            bytes.make_ascii_lowercase();
            bytes.sort_unstable();
            sent.contains(name).then_some(bytes)
        };
        // Whatever is taken for the same, letters never come or go.
        assert!(!same || letters(first) == letters(second), "{name}");
    }
}

fn more_names_never_join(vary: &[&[u8]], first: &Fields, second: &Fields) {
    let before = VaryRule::parse(&super::fields("vary", vary).unwrap());
    for name in ["a", "accept", "cookie", "*"] {
        let mut more = vary.to_vec();
        more.push(name.as_bytes());
        let after = VaryRule::parse(&super::fields("vary", &more).unwrap());
        assert!(before.matches(first, second) || !after.matches(first, second), "{name}");
    }
}

fn what_matches_nothing_is_not_stored(rule: &VaryRule, response: &Fields) {
    let mut received = response.to_builder();
    received.push(b"Cache-Control", b"max-age=60").unwrap();
    let exchange = Exchange {
        method: "GET",
        target: Target { authorities: &["example.org"], path: "/" },
        sent: &Fields::empty(),
        directives: RequestDirectives::default(),
        status: 200,
        received: &received.finish(),
        stores_parts: false,
        requested_at: NOW,
        received_at: NOW,
        jitter: 0.0,
    };
    let judged = judge(&Rules::default(), &exchange);
    assert!(judged.storable != Err(WhyNotStored::VaryAny) || *rule == VaryRule::Any);
    assert!(*rule != VaryRule::Any || !judged.shareable, "{rule:?} would be shared");
}
