//! The log against a plain list of purges, and its rules one by one.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::fields::Fields;
use crate::memory::Ledger;

const GROUP: &str = "g";

fn log(incarnation: u64) -> Log {
    Log::new(incarnation, &Ledger::new(1 << 20))
}

fn key(key: &str) -> Arc<Target> {
    Arc::new(Target::Key(GROUP.into(), Bytes::copy_from_slice(key.as_bytes())))
}

fn tags(names: &str) -> Tags {
    Tags::new(names.split(' ').map(str::as_bytes))
}

fn overtaken(log: &Log, stamp: &Stamp, key: &str) -> bool {
    log.overtaken(stamp, Overtaking::Any, GROUP, key.as_bytes(), &Tags::default()).is_some()
}

fn apply_all(log: &Log) {
    while let Some(batch) = log.front() {
        log.finish(&batch, 0);
    }
}

/// What a notice holds, in one line.
fn shown(notice: &Notice) -> String {
    let records = notice.records.iter().map(|record| {
        let targets: Vec<_> = record.targets.iter().map(|target| format!("{target:?}")).collect();
        format!("{}:{} {}", record.position.incarnation, record.position.sequence, targets.join("+"))
    });
    records.collect::<Vec<_>>().join(", ")
}

#[test]
fn which_fields_name_tags() {
    for (fields, expected) in [
        (&[("Surrogate-Key", "b  a a")][..], "a b"),
        (&[("xkey", "a"), ("XKey", "b\tc")], "a b c"),
        (&[("Cache-Tag", "a, two words ,,b")], "a b two words"),
        (&[("Cache-Tag", "a"), ("Surrogate-Key", "b"), ("xkey", "c")], "a b c"),
        (&[("Surrogate-Key", " ")], ""),
        (&[("Surrogate-Control", "a")], ""),
    ] {
        let tags = Tags::of(&Fields::from_pairs(fields.iter().copied()).unwrap());
        let shown: Vec<_> = tags.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect();
        assert_eq!(shown.join(" "), expected, "{fields:?}");
        assert!(shown.iter().all(|tag| tags.may_have(tag.as_bytes())) && !tags.may_have(b"none"));
    }
    let long = "x".repeat(16 * 1024);
    let tags = Tags::of(&Fields::from_pairs([("xkey", &*long)]).unwrap());
    assert!(tags.are_too_many() && tags.may_have(b"anything"));
}

#[test]
fn a_stamp_separates_what_came_before_from_what_came_after() {
    let log = log(1);
    let before = log.known();
    log.accept(vec![key("a")], false, Duration::ZERO);
    let after = log.known();
    assert_eq!(log.applied(), before, "recorded is not applied");
    apply_all(&log);
    assert_eq!(log.applied(), after);
    for (stamp, name, expected) in [(&before, "a", true), (&before, "b", false), (&after, "a", false)] {
        assert_eq!(overtaken(&log, stamp, name), expected, "{name} {stamp:?}");
        let hop = Stamp::of_hop(stamp.vector.clone());
        assert_eq!(overtaken(&log, &hop, name), expected, "over the hop: {name} {stamp:?}");
    }
    assert!(log.overtaken(&before, Overtaking::Hard, "other", b"a", &Tags::default()).is_none());
    log.accept(vec![key("b")], true, Duration::ZERO);
    assert!(overtaken(&log, &after, "b"));
    assert!(log.overtaken(&after, Overtaking::Hard, GROUP, b"b", &Tags::default()).is_none());
}

#[test]
fn repeated_purges_do_not_pile_up_and_nothing_is_forgotten_with_them() {
    let log = log(1);
    let first = log.known();
    log.accept(vec![key("a")], false, Duration::ZERO);
    let between = log.known();
    for _ in 0..1000 {
        log.accept(vec![key("a"), key("b")], false, Duration::ZERO);
    }
    assert_eq!((log.len(), log.sequence()), (2, 1001));
    assert!(overtaken(&log, &first, "a") && overtaken(&log, &between, "a"));
    // Somebody asked when only the first purge was applied: it must count, although a later one has its place.
    let found = log.overtaken(&first, Overtaking::Any, GROUP, b"a", &Tags::default());
    assert_eq!(found, Some(1));
    log.accept(vec![key("a")], true, Duration::ZERO);
    assert_eq!(log.len(), 3, "a soft purge does not take the place of a hard one");
    assert!(log.overtaken(&first, Overtaking::Hard, GROUP, b"a", &Tags::default()).is_some());
}

#[test]
fn what_the_log_drops_counts_as_everything() {
    let log = Log::with_records_max(1, &Ledger::new(1 << 20), 3);
    let before = log.known();
    for number in 0..5 {
        log.accept(vec![key(&number.to_string())], false, Duration::ZERO);
    }
    assert_eq!(log.len(), 3);
    assert!(overtaken(&log, &before, "x"), "nobody knows what it was overtaken by");
    assert!(overtaken(&log, &Stamp::of_hop(Vector::default()), "x"));
    let enough = Vector::new([Position { incarnation: 1, sequence: 2 }]);
    assert!(!overtaken(&log, &Stamp::of_hop(enough.clone()), "x"));
    assert!(overtaken(&log, &Stamp::of_hop(enough.clone()), "3"));
    assert!(shown(&log.missing(&Vector::default(), Duration::ZERO)).starts_with("1:2 Everything, 1:3 Key"));
    assert!(shown(&log.missing(&enough, Duration::ZERO)).starts_with("1:3 Key"));
    // And by time.
    log.set_retention(Duration::from_secs(10));
    log.accept(vec![key("late")], false, Duration::from_secs(11));
    assert_eq!(log.len(), 1);
}

#[test]
fn who_lacks_what_a_notice_builds_on_records_nothing() {
    let (one, two) = (log(1), log(2));
    one.accept(vec![key("a")], false, Duration::ZERO);
    one.accept(vec![key("b")], false, Duration::ZERO);
    let second = one.own_after(1, Duration::ZERO);
    assert_eq!(two.record(&second, Duration::ZERO), Err(Lacking));
    assert!(two.is_empty());
    let all = one.missing(&two.known().vector, Duration::ZERO);
    assert_eq!(two.record(&all, Duration::ZERO).map(|records| records.len()), Ok(2));
    assert_eq!(two.record(&all, Duration::ZERO).map(|records| records.len()), Ok(0), "twice is once");
    assert_eq!(two.record(&second, Duration::ZERO).map(|records| records.len()), Ok(0));
    apply_all(&two);
    assert_eq!(two.applied().vector, one.known().vector);
    assert!(one.missing(&two.known().vector, Duration::ZERO).claims.is_empty());
}

#[test]
fn pieces_without_claims_hold_before_all_of_them_have_come() {
    let (one, two) = (log(1), log(2));
    let before = two.known();
    one.accept(vec![key("a")], false, Duration::ZERO);
    one.accept(vec![key("b")], false, Duration::ZERO);
    let whole = one.missing(&Vector::default(), Duration::ZERO);
    let piece = Notice { claims: Vec::new(), records: vec![whole.records[0].clone()], ..whole.clone() };
    assert_eq!(two.record(&piece, Duration::ZERO).map(|records| records.len()), Ok(1));
    assert_eq!(two.known().vector, Vector::default(), "nothing is complete");
    assert!(overtaken(&two, &before, "a") && !overtaken(&two, &before, "b"));
    assert!(overtaken(&two, &Stamp::of_hop(Vector::new([Position { incarnation: 9, sequence: 9 }])), "a"));
    assert_eq!(two.record(&whole, Duration::ZERO).map(|records| records.len()), Ok(1), "only what is new");
    apply_all(&two);
    assert_eq!(two.applied().vector, one.known().vector);
}

#[test]
fn applied_follows_the_order_of_the_log() {
    let log = log(1);
    log.accept(vec![key("a")], false, Duration::ZERO);
    let first = log.front().unwrap();
    log.accept(vec![key("b")], false, Duration::ZERO);
    log.finish(&first, 7);
    assert_eq!(log.applied().vector.of(1), 1);
    log.finish(&first, 8);
    assert_eq!(log.applied().vector.of(1), 1, "done once");
    assert_eq!(log.entries(first.position.unwrap()), Some(7));
    apply_all(&log);
    assert_eq!(log.applied(), log.known());
}

#[test]
fn a_life_that_is_long_gone_leaves_the_vectors() {
    let (one, two) = (log(1), log(2));
    two.accept(vec![key("a")], false, Duration::ZERO);
    let notice = two.missing(&Vector::default(), Duration::ZERO);
    one.set_retention(Duration::from_secs(10));
    one.record(&notice, Duration::ZERO).unwrap();
    for (seconds, known) in [(9, 1), (15, 1), (21, 0)] {
        one.accept(vec![key("b")], false, Duration::from_secs(seconds));
        assert_eq!(one.known().vector.of(2), known, "after {seconds} s");
    }
    assert_eq!(one.known().vector.of(1), 3, "its own are never forgotten");
}

/// One step of a history: a purge of a key or a tag, or the taking of a stamp.
#[derive(Clone, Debug)]
enum Step {
    Purge(u64, bool, u8, bool),
    Stamp,
}

proptest! {
    /// Whatever is superseded or told between nodes: something is overtaken exactly when a purge that its stamp lacks matches.
    #[test]
    fn the_log_finds_what_a_plain_list_finds(
        steps in prop::collection::vec(
            prop_oneof![
                4 => (1u64..4, any::<bool>(), 0u8..4, any::<bool>()).prop_map(|(node, tag, name, soft)| Step::Purge(node, tag, name, soft)),
                1 => Just(Step::Stamp),
            ],
            0..60,
        ),
        name in 0u8..4,
        tagged in 0u8..4,
    ) {
        let logs = [log(1), log(2), log(3)];
        let watching = &logs[0];
        let mut plain: Vec<Arc<Target>> = Vec::new();
        let mut stamps: Vec<(Stamp, usize)> = vec![(watching.known(), 0)];
        for step in steps {
            match step {
                Step::Purge(node, is_tag, name, soft) => {
                    let value = Bytes::from(format!("n{name}"));
                    let target = Arc::new(match is_tag {
                        true => Target::Tag(None, value),
                        false => Target::Key(GROUP.into(), value),
                    });
                    let teller = &logs[node as usize - 1];
                    teller.accept(vec![target.clone()], soft, Duration::ZERO);
                    plain.push(target);
                    for log in &logs {
                        let missing = teller.missing(&log.known().vector, Duration::ZERO);
                        log.record(&missing, Duration::ZERO).unwrap();
                    }
                }
                Step::Stamp => stamps.push((watching.known(), plain.len())),
            }
        }
        prop_assert!(watching.len() <= 3 * 2 * 4 * 2);
        let (key, tags) = (format!("n{name}"), tags(&format!("n{tagged}")));
        for (stamp, seen) in stamps {
            let expected = plain[seen..].iter().any(|target| target.matches(GROUP, key.as_bytes(), &tags));
            let hop = Stamp::of_hop(stamp.vector.clone());
            for log in &logs {
                let found = log.overtaken(&hop, Overtaking::Any, GROUP, key.as_bytes(), &tags).is_some();
                prop_assert_eq!(found, expected, "over the hop");
            }
            let found = watching.overtaken(&stamp, Overtaking::Any, GROUP, key.as_bytes(), &tags).is_some();
            prop_assert_eq!(found, expected);
        }
    }
}
