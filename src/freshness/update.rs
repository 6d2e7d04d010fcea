//! Refreshing stored responses by 304 and HEAD (RFC 9111 sections 3.2, 4.3.4 and 4.3.5).

use super::rules::{Rules, SetCookie};
use super::storable::{has_date, is_cookie, is_for_one_connection, nominated_by_connection, with_date};
use crate::clock::Now;
use crate::fields::{FieldLines, Fields, FieldsBuilder};

/// What a response to HEAD does to a stored response to GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadEffect {
    /// It says nothing about it.
    Nothing,
    /// The stored response has these fields from now on; judge them like those of a 304.
    Update(Fields),
    /// The origin has something else by now: the stored response is stale.
    Stale,
}

/// The stored fields after a 304 that [`selected_by_304`] found to be about them (section 3.2).
///
/// The result still holds the `Age` of the 304, for [`judge`](super::judge); what is stored in the end is what
/// [`fields_to_store`](super::fields_to_store) leaves of it. A cookie is merged only where cookies are shared: it was for
/// whoever caused the validation, and says nothing about the stored response.
pub fn updated_by_304(rules: &Rules, stored: &FieldLines, not_modified: &FieldLines, received_at: Now) -> Fields {
    updated(rules, stored, not_modified, received_at)
}

/// Which stored responses a 304 refreshes (section 4.3.4), as indexes into `candidates`, which are those that the
/// validation named, the most recent first.
///
/// A strong entity tag selects those with the same one, and if there is none, nothing may be updated: the caller asks
/// again without condition. Weaker validators select the most recent match. A 304 without any validator selects a single
/// candidate: section 4.3.4 says so where the candidate has no validator either; we also take it for the candidate whose
/// validator we sent, because many servers leave the validators out of a 304 (against RFC 9110 section 15.4.5) and nothing
/// else can be meant.
pub fn selected_by_304(candidates: &[&FieldLines], not_modified: &FieldLines) -> Vec<usize> {
    let all = || candidates.iter().enumerate();
    if let Some(tag) = not_modified.get("etag") {
        if !is_weak(tag) {
            return all().filter(|(_, stored)| stored.get("etag") == Some(tag)).map(|(index, _)| index).collect();
        }
        let same = |stored: &&FieldLines| stored.get("etag").is_some_and(|known| weak_match(known, tag));
        if let Some((index, _)) = all().find(|(_, stored)| same(stored)) {
            return vec![index];
        }
    }
    if let Some(modified) = not_modified.get("last-modified") {
        // A tag that differs is news; only where one side has no tag does the date decide.
        let comparable = |stored: &&FieldLines| !(stored.contains("etag") && not_modified.contains("etag"));
        let same = |stored: &&FieldLines| stored.get("last-modified") == Some(modified) && comparable(stored);
        return all().find(|(_, stored)| same(stored)).map(|(index, _)| index).into_iter().collect();
    }
    if not_modified.contains("etag") || candidates.len() != 1 { Vec::new() } else { vec![0] }
}

/// What the head of a response to HEAD does to a stored 200 (section 4.3.5). `stored_length` is the length of the stored
/// body in bytes. A status other than 200 says nothing.
pub fn updated_by_head(
    rules: &Rules,
    stored: &FieldLines,
    stored_length: Option<u64>,
    status: u16,
    head: &FieldLines,
    received_at: Now,
) -> HeadEffect {
    if status != 200 {
        return HeadEffect::Nothing;
    }
    let same = |name: &str| head.get(name).is_none_or(|value| stored.get(name) == Some(value));
    let length = head.get("content-length").is_none_or(|value| {
        let length = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
        length.is_some() && length == stored_length
    });
    if same("etag") && same("last-modified") && length {
        HeadEffect::Update(updated(rules, stored, head, received_at))
    } else {
        HeadEffect::Stale
    }
}

fn updated(rules: &Rules, stored: &FieldLines, news: &FieldLines, received_at: Now) -> Fields {
    let nominated = nominated_by_connection(news);
    let keeps_tag = stored.contains("etag");
    let left_out = |name: &str| {
        let name = name.to_ascii_lowercase();
        describes_stored_body(&name)
            || is_for_one_connection(&name, &nominated)
            || (name == "etag" && keeps_tag)
            || (rules.set_cookie != SetCookie::Share && is_cookie(&name))
    };
    // Without a date of its own the news would be taken for as old as the stored response (RFC 9110 section 6.6.1).
    let dated = if has_date(news, received_at) {
        news.without(left_out)
    } else {
        with_date(&news.without(|name| left_out(name) || name.eq_ignore_ascii_case("date")), received_at)
    };
    let mut builder = FieldsBuilder::with_capacity(stored.len() + dated.len());
    let kept = stored.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("age") && !dated.contains(name));
    for (name, value) in kept.chain(dated.iter()) {
        let added = builder.push(name.as_bytes(), value);
        debug_assert!(added.is_ok(), "it came out of a well formed block");
    }
    builder.finish()
}

/// Fields that belong to the bytes we hold: the exceptions of section 3.2. Digests of a 304 are those of its own, empty
/// content (RFC 9530).
fn describes_stored_body(name: &str) -> bool {
    matches!(
        name,
        "content-length"
            | "content-encoding"
            | "content-range"
            | "content-md5"
            | "content-digest"
            | "repr-digest"
            | "digest"
    )
}

fn is_weak(tag: &[u8]) -> bool {
    tag.starts_with(b"W/")
}

/// Weak comparison (RFC 9110 section 8.8.3.2).
fn weak_match(left: &[u8], right: &[u8]) -> bool {
    opaque(left) == opaque(right)
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { monotonic: std::time::Duration::ZERO, wall_seconds: 784_111_777 };
    const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT";

    fn fields(lines: &[&str]) -> Fields {
        Fields::from_pairs(lines.iter().map(|line| line.split_once(':').unwrap())).unwrap()
    }

    #[test]
    fn which_fields_a_304_replaces() {
        let share = Rules { set_cookie: SetCookie::Share, ..Rules::default() };
        for (why, rules, stored, news, expected) in [
            (
                "3.2 replaces what is there",
                Rules::default(),
                &["A: 1", "B: 2", "a: 3"][..],
                &["a: 4", DATE][..],
                &["B: 2", "a: 4", DATE][..],
            ),
            (
                "3.2 adds what is not",
                Rules::default(),
                &["A: 1"],
                &["Cache-Control: max-age=9", "Content-Type: text/plain", DATE],
                &["A: 1", "Cache-Control: max-age=9", "Content-Type: text/plain", DATE],
            ),
            (
                "3.2 not what describes the stored bytes",
                Rules::default(),
                &["Content-Length: 5", "Content-Encoding: br", "Content-MD5: x", "Content-Range: bytes 0-4/9"],
                &[
                    "Content-Length: 0",
                    "Content-Encoding: gzip",
                    "Content-MD5: y",
                    "Content-Range: z",
                    "Content-Digest: d",
                    DATE,
                ],
                &["Content-Length: 5", "Content-Encoding: br", "Content-MD5: x", "Content-Range: bytes 0-4/9", DATE],
            ),
            (
                "3.1 not what belongs to the connection",
                Rules::default(),
                &["A: 1"],
                &["Connection: b, Cache-Control", "B: 2", "Keep-Alive: x", "Cache-Control: no-store", DATE],
                &["A: 1", "Cache-Control: no-store", DATE],
            ),
            (
                "a strong tag does not become weak",
                Rules::default(),
                &["ETag: \"a\""],
                &["ETag: W/\"a\"", DATE],
                &["ETag: \"a\"", DATE],
            ),
            ("cookies stay with who asked", Rules::default(), &["A: 1"], &["Set-Cookie: a=b", DATE], &["A: 1", DATE]),
            (
                "unless they are shared",
                share,
                &["Set-Cookie: a=b"],
                &["Set-Cookie: a=c", DATE],
                &["Set-Cookie: a=c", DATE],
            ),
            (
                "4.2.3 the age of the news counts, the old one does not",
                Rules::default(),
                &["Age: 9"],
                &["Age: 3", DATE],
                &["Age: 3", DATE],
            ),
            (
                "9110 6.6.1 a date is added",
                Rules::default(),
                &["Date: Sun, 06 Nov 1994 08:00:00 GMT"],
                &["A: 1"],
                &["A: 1", DATE],
            ),
            (
                "9110 6.6.1 a bad date is replaced",
                Rules::default(),
                &["Date: Sun, 06 Nov 1994 08:00:00 GMT"],
                &["Date: x"],
                &[DATE],
            ),
        ] {
            assert_eq!(updated_by_304(&rules, &fields(stored), &fields(news), NOW), fields(expected), "{why}");
        }
    }

    #[test]
    fn which_responses_a_304_selects() {
        let strong = &["ETag: \"a\"", "Last-Modified: x"][..];
        let other = &["ETag: \"b\"", "Last-Modified: x"][..];
        let weak = &["ETag: W/\"a\""][..];
        let dated = &["Last-Modified: x"][..];
        let bare = &["A: 1"][..];
        for (why, candidates, news, expected) in [
            ("4.3.4 a strong tag selects all with it", &[other, strong, strong][..], &["ETag: \"a\""][..], &[1, 2][..]),
            (
                "4.3.4 a strong tag that nobody has selects none",
                &[other, dated],
                &["ETag: \"a\"", "Last-Modified: x"],
                &[],
            ),
            ("4.3.4 strong is not weak", &[weak], &["ETag: \"a\""], &[]),
            ("4.3.4 a weak tag selects the most recent match", &[other, weak, strong], &["ETag: W/\"a\""], &[1]),
            ("4.3.4 a weak tag that differs is news", &[other], &["ETag: W/\"a\"", "Last-Modified: x"], &[]),
            ("4.3.4 a date is a weak validator", &[bare, dated, dated], &["Last-Modified: x"], &[1]),
            ("4.3.4 another date is news", &[dated], &["Last-Modified: y"], &[]),
            ("4.3.4 no validator on either side", &[bare], &["B: 1"], &[0]),
            ("9110 15.4.5 a 304 that leaves the validators out", &[strong], &["B: 1"], &[0]),
            ("4.3.4 no validator and several candidates", &[bare, strong], &["B: 1"], &[]),
        ] {
            let candidates: Vec<Fields> = candidates.iter().map(|lines| fields(lines)).collect();
            let candidates: Vec<&FieldLines> = candidates.iter().map(|fields| &**fields).collect();
            assert_eq!(selected_by_304(&candidates, &fields(news)), expected, "{why}");
        }
    }

    #[test]
    fn what_a_head_does() {
        let stored = &["ETag: \"a\"", "A: 1"][..];
        let update = |lines: &[&str]| HeadEffect::Update(fields(lines));
        for (why, status, head, expected) in [
            (
                "4.3.5 all matches",
                200,
                &["ETag: \"a\"", "Content-Length: 5", "A: 2", DATE][..],
                update(&["ETag: \"a\"", "A: 2", DATE]),
            ),
            ("4.3.5 nothing to compare", 200, &["A: 2", DATE], update(&["ETag: \"a\"", "A: 2", DATE])),
            ("4.3.5 another tag", 200, &["ETag: \"b\""], HeadEffect::Stale),
            ("4.3.5 a validator that we do not have", 200, &["Last-Modified: x"], HeadEffect::Stale),
            ("4.3.5 another length", 200, &["ETag: \"a\"", "Content-Length: 6"], HeadEffect::Stale),
            ("4.3.5 not a length", 200, &["Content-Length: five"], HeadEffect::Stale),
            ("4.3.5 only of a 200", 410, &["ETag: \"b\""], HeadEffect::Nothing),
        ] {
            assert_eq!(
                updated_by_head(&Rules::default(), &fields(stored), Some(5), status, &fields(head), NOW),
                expected,
                "{why}"
            );
        }
    }
}
