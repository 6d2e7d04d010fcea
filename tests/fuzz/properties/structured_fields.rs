//! Structured fields: what we write can be read by a well-kept crate, and what it cannot read counts for nothing.

use groupcache_proxy::fields::Fields;
use groupcache_proxy::freshness::{FoundIn, ResponseDirectives, Rules, SECONDS_MAX, Seconds};
use groupcache_proxy::semantics::cache_status::{
    Cache, CacheStatus, ForwardReason, Handling, earlier_members, write_value,
};
use sfv::{BareItem, Dictionary, List, ListEntry, Parser};

pub(super) fn hold(data: &[u8]) {
    let lines = super::lines(data);
    let Some(response) = super::fields("Cache-Status", &lines) else { return };
    cache_status(&response, &lines);
    targeted(lines.last().copied().unwrap_or_default());
}

fn cache_status(response: &Fields, lines: &[&[u8]]) {
    let earlier = earlier_members(response);
    let before = Parser::new(&earlier).parse::<List>().expect("members that were accepted").len();
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.trim_ascii()).filter(|line| !line.is_empty()).collect();
    let readable = Parser::new(&lines.join(&b", "[..])).parse::<List>().is_ok_and(|list| !list.is_empty());
    assert_eq!(!earlier.is_empty(), readable);
    let detail = lines.last().map(|line| String::from_utf8_lossy(line).into_owned());
    let length = lines.concat().len() as i64;
    let handling =
        Handling::Forwarded { reason: ForwardReason::Stale, status: Some(304), stored: true, collapsed: true };
    let owner = CacheStatus { cache: Cache::Owner, handling, ttl_seconds: Some(i64::MIN + length), detail: None };
    let node = CacheStatus {
        cache: Cache::Node,
        handling: Handling::Hit,
        ttl_seconds: Some(length),
        detail: detail.as_deref(),
    };
    for owner in [None, Some(&owner)] {
        let mut value = Vec::new();
        write_value(&earlier, owner, &node, &mut value);
        let list = Parser::new(&value).parse::<List>().expect("what we write can be read");
        assert_eq!(list.len(), before + usize::from(owner.is_some()) + 1);
        let Some(ListEntry::Item(ours)) = list.last() else { panic!("our member is no item") };
        assert_eq!(ours.bare_item.as_token().map(|token| token.as_str()), Some("groupcache-proxy"));
        assert_eq!(ours.params.get("hit"), Some(&BareItem::Boolean(true)));
        assert_eq!(ours.params.contains_key("detail"), detail.is_some());
        assert!(Fields::from_pairs([("Cache-Status", &value)]).is_ok());
    }
}

/// Beside `Cache-Control: max-age=60`.
fn targeted(line: &[u8]) {
    let read = |name: &str| {
        let received = Fields::from_pairs([(name, line), ("Cache-Control", b"max-age=60")]).unwrap();
        ResponseDirectives::parse(&Rules::default(), &received)
    };
    let alone =
        ResponseDirectives::parse(&Rules::default(), &Fields::from_pairs([("Cache-Control", b"max-age=60")]).unwrap());
    let found = read("CDN-Cache-Control");
    match Parser::new(line.trim_ascii()).parse::<Dictionary>() {
        Ok(dictionary) if found.found_in == FoundIn::Targeted => {
            let item = |name: &str| {
                dictionary.get(name).map(|entry| match entry {
                    ListEntry::Item(item) => &item.bare_item,
                    ListEntry::InnerList(_) => panic!("an inner list is no directive"),
                })
            };
            for (name, ours) in [
                ("max-age", found.max_age),
                ("s-maxage", found.s_maxage),
                ("stale-while-revalidate", found.stale_while_revalidate),
                ("stale-if-error", found.stale_if_error),
            ] {
                let theirs = match item(name) {
                    None => Seconds::Absent,
                    Some(BareItem::Integer(number)) => u64::try_from(i64::from(*number))
                        .map_or(Seconds::Invalid, |number| Seconds::Given(number.min(u64::from(SECONDS_MAX)) as u32)),
                    Some(other) => panic!("{name}={other:?} is no number of seconds"),
                };
                assert_eq!(ours, theirs, "{name}");
            }
            assert_eq!(found.no_store, item("no-store").is_some());
            assert_eq!(found.public, item("public").is_some());
            assert_eq!(found.private || !found.private_fields.is_empty(), item("private").is_some());
            assert_eq!(found.no_cache || !found.no_cache_fields.is_empty(), item("no-cache").is_some());
        }
        // Empty, malformed, or with a member of another type: the next field decides.
        _ => assert_eq!(found, alone),
    }
    let found = read("Surrogate-Control");
    if found.found_in == FoundIn::Targeted {
        assert!(super::mentions(line, "no-store") || super::mentions(line, "max-age"));
        assert!(!found.public && !found.must_understand && found.s_maxage == Seconds::Absent);
        assert!(found.no_store || found.max_age != Seconds::Absent);
    } else {
        assert_eq!(found, alone);
    }
}
