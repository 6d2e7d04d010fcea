//! Fields that address caches of our kind and put `Cache-Control` and `Expires` out of force.
//!
//! Most are structured fields (RFC 9213 section 2.1). `Surrogate-Control` is older (Edge Architecture Specification,
//! W3C Note of 4 August 2001) and has a syntax of its own.

use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::directives::{
    Argument, Directive, Directives, FoundIn, ResponseDirectives, SECONDS_MAX, Seconds, parse_field_names,
};
use crate::fields::Fields;

/// Our device token: a directive of `Surrogate-Control` with another token after a semicolon is not for us.
pub const SURROGATE_DEVICE: &str = "groupcache-proxy";

/// Value of the `Surrogate-Capability` field that goes to an origin, so that it can address us.
pub const SURROGATE_CAPABILITY: &str = "groupcache-proxy=\"Surrogate/1.0\"";

/// The directives of the targeted field `name`; `None` where the field is absent, empty or malformed, or says nothing
/// to us, and the next field decides.
pub(super) fn parse(name: &str, received: &Fields) -> Option<ResponseDirectives> {
    if !received.contains(name) {
        return None;
    }
    if name.eq_ignore_ascii_case("surrogate-control") {
        return surrogate(received.get_all(name));
    }
    // Lines are combined before parsing (RFC 9110 section 5.3).
    structured(&received.get_all(name).collect::<Vec<_>>().join(&b", "[..]))
}

/// RFC 9213 section 2.1: a dictionary whose members have the types that follow from the directives' syntax. A member of
/// another type must not be consumed; as nothing says what then holds of its neighbours, the field counts as malformed.
fn structured(value: &[u8]) -> Option<ResponseDirectives> {
    let dictionary = Parser::new(value).parse::<Dictionary>().ok()?;
    if dictionary.is_empty() {
        return None;
    }
    let mut found = ResponseDirectives { found_in: FoundIn::Targeted, ..Default::default() };
    for (key, entry) in &dictionary {
        let flag =
            || matches!(entry, ListEntry::Item(item) if item.bare_item == BareItem::Boolean(true)).then_some(true);
        match key.as_str() {
            "no-store" => found.no_store = flag()?,
            "no-cache" => fields_or_whole(entry, &mut found.no_cache, &mut found.no_cache_fields)?,
            "private" => fields_or_whole(entry, &mut found.private, &mut found.private_fields)?,
            "public" => found.public = flag()?,
            "max-age" => found.max_age = seconds(entry)?,
            "s-maxage" => found.s_maxage = seconds(entry)?,
            "must-revalidate" => found.must_revalidate = flag()?,
            "proxy-revalidate" => found.proxy_revalidate = flag()?,
            "must-understand" => found.must_understand = flag()?,
            // Arguments of immutable are to be ignored (RFC 8246 section 2).
            "immutable" => found.immutable = true,
            "no-transform" => found.no_transform = flag()?,
            "stale-while-revalidate" => found.stale_while_revalidate = seconds(entry)?,
            "stale-if-error" => found.stale_if_error = seconds(entry)?,
            _ => {}
        }
    }
    found.shared_despite_authorization =
        found.public || found.must_revalidate || matches!(found.s_maxage, Seconds::Given(_));
    Some(found)
}

fn seconds(entry: &ListEntry) -> Option<Seconds> {
    match entry {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::Integer(number) => Some(match u64::try_from(i64::from(*number)) {
                Ok(number) => Seconds::Given(number.min(u64::from(SECONDS_MAX)) as u32),
                Err(_) => Seconds::Invalid,
            }),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    }
}

fn fields_or_whole(entry: &ListEntry, whole: &mut bool, fields: &mut Vec<String>) -> Option<()> {
    let ListEntry::Item(item) = entry else { return None };
    match &item.bare_item {
        BareItem::Boolean(true) => *whole = true,
        BareItem::String(list) => match parse_field_names(list.as_str().as_bytes()) {
            Some(names) => fields.extend(names),
            None => *whole = true,
        },
        _ => return None,
    }
    Some(())
}

/// Directives without a token are for every surrogate; those with ours go before them.
fn surrogate<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<ResponseDirectives> {
    let (mut for_us, mut for_all) = (None, None);
    for directive in lines.flat_map(Directives::with_parameters) {
        if directive.parameters.is_empty() {
            surrogate_directive(&directive, &mut for_all);
        } else if directive.parameters.iter().any(|token| token.eq_ignore_ascii_case(SURROGATE_DEVICE.as_bytes())) {
            surrogate_directive(&directive, &mut for_us);
        }
    }
    for_us.or(for_all)
}

/// `no-store` and `max-age=fresh+stale`, where the second number is how long the response may be used after the first;
/// `content` and `no-store-remote` do not concern a cache that stands before its own origin.
fn surrogate_directive(directive: &Directive<'_>, found: &mut Option<ResponseDirectives>) {
    let is = |name: &[u8]| directive.name.eq_ignore_ascii_case(name);
    if !is(b"no-store") && !is(b"max-age") {
        return;
    }
    let found = found.get_or_insert_with(|| ResponseDirectives { found_in: FoundIn::Targeted, ..Default::default() });
    if is(b"no-store") {
        found.no_store = true;
        return;
    }
    let plus = |argument: &[u8]| memchr::memchr(b'+', argument);
    match &directive.argument {
        Argument::Token(argument) if directive.sound && plus(argument).is_some() => {
            let (fresh, stale) = argument.split_at(plus(argument).unwrap_or(0));
            let stale = Seconds::from_digits(&stale[1..]);
            found.max_age.take(Seconds::from_digits(fresh));
            found.stale_while_revalidate.take(stale);
            found.stale_if_error.take(stale);
        }
        _ => found.max_age.take(directive.seconds()),
    }
}
