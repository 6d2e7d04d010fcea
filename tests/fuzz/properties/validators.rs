//! Conditions: never a 304 or a part for a client that does not have this very representation.

use groupcache_proxy::fields::Fields;
use groupcache_proxy::semantics::preconditions::{Outcome, Preconditions, evaluate};
use groupcache_proxy::semantics::ranges::IfRange;
use groupcache_proxy::semantics::validators::{EntityTag, StoredValidators, Validators};

use super::NOW;

pub(super) fn hold(data: &[u8]) {
    let lines = super::lines(data);
    let (etag, conditions) = (lines[0].trim_ascii(), &lines[1..]);
    let Some(response) = super::fields("etag", &[etag]) else { return };
    let validators = Validators::of(&response, NOW.wall_seconds);
    assert_eq!(StoredValidators::of(&response, NOW.wall_seconds).in_block(&response), validators);
    if let Some(tag) = EntityTag::parse(etag) {
        comparison_is_an_equivalence(&tag);
    }
    for name in ["if-none-match", "if-match", "if-range", "if-modified-since", "if-unmodified-since"] {
        let Some(request) = super::fields(name, conditions) else { return };
        outcome_has_a_reason(name, &request, etag, &validators, conditions);
    }
}

fn comparison_is_an_equivalence(tag: &EntityTag<'_>) {
    assert!(tag.weakly_equals(tag));
    assert_eq!(tag.strongly_equals(tag), !tag.is_weak());
}

fn outcome_has_a_reason(name: &str, request: &Fields, etag: &[u8], validators: &Validators<'_>, lines: &[&[u8]]) {
    let text = lines.join(&b"\n"[..]);
    let opaque = if etag.starts_with(b"W/\"") { &etag[2..] } else { etag };
    let has_tag = validators.entity_tag.is_some() && contains(&text, opaque);
    let has_star = lines.iter().any(|line| line.trim_ascii() == b"*");
    let conditions = Preconditions::parse(request);
    for method in [http::Method::GET, http::Method::HEAD, http::Method::PUT] {
        for status in [200, 206, 404] {
            let outcome = evaluate(&conditions, &method, status, validators);
            if method == http::Method::PUT || status == 404 || lines.is_empty() {
                assert_eq!(outcome, Outcome::Proceed);
            }
            match (name, outcome) {
                ("if-none-match", Outcome::NotModified) => assert!(has_tag || has_star),
                ("if-match", Outcome::Proceed) if status != 404 && method == http::Method::GET && !lines.is_empty() => {
                    assert!(has_tag || has_star);
                }
                ("if-none-match" | "if-modified-since", Outcome::PreconditionFailed)
                | ("if-match" | "if-unmodified-since" | "if-range", Outcome::NotModified) => {
                    panic!("{name} gives {outcome:?}");
                }
                _ => {}
            }
        }
    }
    if name == "if-range" && !lines.is_empty() && IfRange::parse(request).holds(validators) {
        assert!(has_tag && !etag.starts_with(b"W/") && etag.starts_with(b"\""), "{:?}", String::from_utf8_lossy(etag));
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
