//! One node, an owner and a node that owns nothing answer alike, whatever is asked and whatever the origin does meanwhile.

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::freshness::{Rules, format_http_date};

/// One thing that happens.
#[derive(Clone)]
enum Step {
    Ask {
        key: usize,
        method: Method,
        range: Option<&'static str>,
        if_range: bool,
        gzip: bool,
        directives: RequestDirectives,
    },
    Advance(u64),
    Change(usize),
    Behave(Behaviour),
}

impl std::fmt::Debug for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Ask { key, method, range, if_range, gzip, directives } => write!(
                formatter,
                "{} {} range {} if-range {if_range} gzip {gzip} {directives}",
                method.as_str(),
                KEYS[*key].0,
                range.unwrap_or("-")
            ),
            Step::Advance(seconds) => write!(formatter, "{seconds} s later"),
            Step::Change(key) => write!(formatter, "{} changes", KEYS[*key].0),
            Step::Behave(behaviour) => write!(formatter, "the origin: {behaviour:?}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Behaviour {
    Well,
    Fails,
    Unreachable,
    IgnoresRanges,
    IgnoresConditions,
}

/// What the keys are like: fields beside date and validators.
const KEYS: [(&str, &[(&str, &str)], Validator); 9] = [
    ("tagged", &[("Cache-Control", "max-age=60")], Validator::Tag),
    ("dated", &[("Cache-Control", "max-age=30, stale-while-revalidate=20")], Validator::Date),
    ("varying", &[("Cache-Control", "max-age=60"), ("Vary", "Accept-Encoding")], Validator::Tag),
    ("bare", &[("Cache-Control", "max-age=20, stale-if-error=10")], Validator::None),
    ("unstored", &[("Cache-Control", "no-store")], Validator::Tag),
    ("weak", &[("Cache-Control", "max-age=25")], Validator::WeakTag),
    ("strict", &[("Cache-Control", "max-age=10, must-revalidate")], Validator::Tag),
    ("checked", &[("Cache-Control", "no-cache")], Validator::Tag),
    (
        "named",
        &[("Cache-Control", "max-age=20, no-cache=\"X-Version\", private=x-own"), ("X-Own", "1")],
        Validator::Tag,
    ),
];

#[derive(Clone, Copy)]
enum Validator {
    None,
    Tag,
    WeakTag,
    Date,
}

/// An origin whose answers follow from the time, the versions of its resources, and the question.
struct Resources {
    clock: Arc<ManualClock>,
    /// Whether it says `Date`.
    dated: bool,
    state: Mutex<([u64; KEYS.len()], Behaviour)>,
}

impl Resources {
    fn tag(key: usize, version: u64, gzip: bool) -> String {
        let (name, _, validator) = KEYS[key];
        let weak = if let Validator::WeakTag = validator { "W/" } else { "" };
        format!("{weak}\"{name}-{version}-{gzip}\"")
    }

    /// A second per version, so that a change always shows; long before the time of the test, so that dates are strong.
    fn changed(version: u64) -> String {
        format_http_date(1_700_000_000 + version as i64)
    }

    fn answer(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        let (versions, behaviour) = *self.state.lock();
        let key = KEYS.iter().position(|(name, ..)| ask.key == name.as_bytes()).unwrap();
        let (name, fields, validator) = KEYS[key];
        let gzip = ask.fields.get("accept-encoding") == Some(b"gzip") && name == "varying";
        let date = format_http_date(self.clock.now().wall_seconds);
        let mut fields: Vec<(String, String)> =
            fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        if self.dated {
            fields.push(("Date".into(), date));
        }
        fields.push(("X-Version".into(), versions[key].to_string()));
        let (tag, changed) = (Self::tag(key, versions[key], gzip), Self::changed(versions[key]));
        match validator {
            Validator::None => {}
            Validator::Tag | Validator::WeakTag => fields.push(("ETag".into(), tag.clone())),
            Validator::Date => fields.push(("Last-Modified".into(), changed.clone())),
        }
        let body = Bytes::from(format!("{name} {} {gzip}: 0123456789", versions[key]));
        let (status, body, length) = match behaviour {
            Behaviour::Unreachable => return Err(FetchError::unreachable("down")),
            Behaviour::Fails => {
                fields.retain(|(name, _)| name == "Date");
                (500, Bytes::from("oops"), 4)
            }
            _ => {
                let validator = match validator {
                    Validator::None => None,
                    Validator::Tag | Validator::WeakTag => Some(("if-none-match", tag)),
                    Validator::Date => Some(("if-modified-since", changed)),
                };
                let is = |name: &str, value: &str| ask.fields.get(name) == Some(value.as_bytes());
                let confirmed = validator.as_ref().is_some_and(|(name, value)| is(name, value));
                let range = ask.fields.get("range").and_then(RangeSet::parse_value);
                let applies = !ask.fields.contains("if-range")
                    || validator.as_ref().is_some_and(|(_, value)| is("if-range", value) && !value.starts_with("W/"));
                let length = body.len() as u64;
                match range.filter(|_| applies && ask.method == Method::Get).map(|range| range.resolve(length)) {
                    _ if confirmed && behaviour != Behaviour::IgnoresConditions => (304, Bytes::new(), 0),
                    Some(Resolved::Single(part)) if behaviour != Behaviour::IgnoresRanges => {
                        let place = ContentRange::Part { range: part, length: Some(length) };
                        fields.push(("Content-Range".into(), place.to_string()));
                        (206, body.slice(part.first as usize..=part.last as usize), part.length())
                    }
                    _ => (200, body, length),
                }
            }
        };
        Ok(Fetched {
            status,
            fields: Fields::from_pairs(fields).unwrap(),
            content_length: (status != 304).then_some(length),
            close_delimited: false,
            hop: None,
            body: Box::new(ReadyBody::new((ask.method == Method::Get).then_some(body))),
        })
    }
}

#[async_trait]
impl Source for Resources {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        self.answer(ask)
    }
}

/// A node or a fleet with an origin of its own, asked at one place.
struct Side {
    name: &'static str,
    nodes: Vec<Arc<Node>>,
    origin: Arc<Resources>,
    /// Which node is asked for a key.
    asked: fn(&Node, usize, &[u8]) -> usize,
}

impl Side {
    fn new(name: &'static str, size: usize, asked: fn(&Node, usize, &[u8]) -> usize) -> Self {
        Side::with_clocks(name, &vec![0; size], true, asked)
    }

    /// The wall clock of each node is wrong by so many seconds.
    fn with_clocks(name: &'static str, wrong_by: &[i64], dated: bool, asked: fn(&Node, usize, &[u8]) -> usize) -> Self {
        let size = wrong_by.len();
        let origin = Arc::new(Resources {
            clock: Arc::new(ManualClock::new(1_800_000_000)),
            dated,
            state: Mutex::new(([0; KEYS.len()], Behaviour::Well)),
        });
        let rules = || Rules { jitter_percent: 0.0, honour_request_directives: true, ..Rules::default() };
        let nodes: Vec<_> = (0..size)
            .map(|index| {
                // Their monotonic clocks began at different times, too.
                let running = 1000 * index as i64;
                let clock = Arc::new(ManualClock::new(1_800_000_000 + wrong_by[index] - running));
                clock.advance(Duration::from_secs(running as u64));
                let mut node = Node::with_clock(&Scripted::new(), rules(), index as u64 + 1, None, clock);
                Arc::get_mut(&mut node.group).unwrap().source = origin.clone();
                Arc::new(node)
            })
            .collect();
        let peers: Vec<_> = (0..size).map(|peer| RingPeer::new(format!("http://node-{peer}"))).collect();
        for (index, node) in nodes.iter().enumerate().filter(|_| size > 1) {
            let ring = Ring::new(RingKind::Groupcache, 50, &peers);
            let links = nodes.iter().enumerate().map(|(peer, to)| {
                let link = Link {
                    mute: Arc::default(),
                    from: node.cache.incarnation(),
                    to: to.clone(),
                    cut: Arc::default(),
                    leaving: Arc::default(),
                    deaf: Arc::default(),
                    carried: Arc::default(),
                    ahead: Arc::default(),
                };
                (peer != index).then(|| Arc::new(link) as Arc<dyn crate::fleet::Peer>)
            });
            node.cache.set_fleet(Fleet::new(ring, links.collect(), |key| Some(key.into())));
        }
        Side { name, nodes, origin, asked }
    }

    /// What a client sees; what the cache has no part in comes from the origin.
    async fn ask(&self, request: &Request) -> Seen {
        let node = &self.nodes[(self.asked)(&self.nodes[0], self.nodes.len(), &request.key)];
        let mut answer = node.cache.get(&node.group, request).await;
        if let Payload::Pass(_) = answer.payload {
            let (reader, fill) = node.cache.flights.alone(node.cache.flight_of_key(&node.group, &request.key));
            node.cache.filling(&node.group, request.clone(), Basis::Nothing, Stamp::default()).start(fill);
            let Ok(Landed::Streaming(head)) = reader.head().await else { return Seen::nothing() };
            let reader = node.cache.following(&node.group, request, Route::Here, head, reader);
            answer = Answer::from_stream(reader, "bypass", false);
        }
        let seen = seen(request, answer).await;
        for node in &self.nodes {
            node.settle().await;
        }
        seen
    }

    fn step(&self, step: &Step) {
        match *step {
            Step::Ask { .. } => {}
            Step::Advance(seconds) => {
                let by = Duration::from_secs(seconds);
                self.nodes
                    .iter()
                    .map(|node| &node.clock)
                    .chain([&self.origin.clock])
                    .for_each(|clock| clock.advance(by));
            }
            Step::Change(key) => self.origin.state.lock().0[key] += 1,
            Step::Behave(behaviour) => self.origin.state.lock().1 = behaviour,
        }
    }
}

impl Seen {
    /// What nodes with wrong clocks write themselves where the origin says no date.
    fn without_date(mut self, sides: &[Side]) -> Self {
        self.fields.retain(|(name, _)| name != "date" || sides[0].origin.dated);
        self
    }

    fn nothing() -> Self {
        Seen { status: 502, fields: Vec::new(), body: None }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let range = prop::option::weighted(
        0.5,
        prop::sample::select(vec!["0-3", "2-5", "0-9", "4-", "-3", "5-5", "1-2,4-5", "0-", "90-"]),
    );
    let directives = prop_oneof![
        8 => Just(RequestDirectives::default()),
        1 => Just(RequestDirectives { no_cache: true, ..Default::default() }),
        1 => Just(RequestDirectives { max_age: Some(15), ..Default::default() }),
        1 => Just(RequestDirectives { stale_if_error: Some(30), ..Default::default() }),
        1 => Just(RequestDirectives { min_fresh: Some(25), ..Default::default() }),
        1 => Just(RequestDirectives { only_if_cached: true, ..Default::default() }),
        1 => Just(RequestDirectives { no_store: true, ..Default::default() }),
        1 => Just(RequestDirectives { max_stale: Some(crate::freshness::MaxStale::Seconds(15)), ..Default::default() }),
    ];
    let head = prop::bool::weighted(0.15);
    let ask = (0..KEYS.len(), head, range, prop::bool::weighted(0.2), any::<bool>(), directives).prop_map(
        |(key, head, range, if_range, gzip, directives)| {
            let method = if head { Method::Head } else { Method::Get };
            Step::Ask { key, method, range: range.filter(|_| !head), if_range, gzip, directives }
        },
    );
    let behaviour = prop::sample::select(vec![
        Behaviour::Well,
        Behaviour::Well,
        Behaviour::Well,
        Behaviour::Fails,
        Behaviour::Unreachable,
        Behaviour::IgnoresRanges,
        Behaviour::IgnoresConditions,
    ]);
    prop_oneof![
        12 => ask,
        2 => (1u64..70).prop_map(Step::Advance),
        1 => (0..KEYS.len()).prop_map(Step::Change),
        1 => behaviour.prop_map(Step::Behave),
    ]
}

fn owner(node: &Node, size: usize, key: &[u8]) -> usize {
    node.cache.fleet.load().owner_index(key).unwrap_or(size - 1)
}

fn other(node: &Node, size: usize, key: &[u8]) -> usize {
    (node.cache.fleet.load().owner_index(key).unwrap() + 1) % size
}

/// Takes all sides through the steps; they differ in no answer.
fn compare(sides: &[Side], steps: &[Step]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (index, step) in steps.iter().enumerate() {
            sides.iter().for_each(|side| side.step(step));
            let &Step::Ask { key, method, range, if_range, gzip, directives } = step else { continue };
            let forwarded: &[(&str, &str)] = if gzip { &[("Accept-Encoding", "gzip")] } else { &[] };
            let version = sides[0].origin.state.lock().0[key];
            let validator = match KEYS[key].2 {
                Validator::Date => Resources::changed(version),
                _ => Resources::tag(key, version, gzip && KEYS[key].0 == "varying"),
            };
            let range = range.and_then(|range| get_range("", range, if if_range { &validator } else { "" }).range);
            let request = Request { method, range, directives, ..get(KEYS[key].0, forwarded) };
            let expected = sides[0].ask(&request).await.without_date(sides);
            for side in &sides[1..] {
                let seen = side.ask(&request).await.without_date(sides);
                prop_assert_eq!(&seen, &expected, "{} differs from a node at step {}: {:?}", side.name, index, step);
            }
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn a_fleet_answers_as_a_node_does(steps in prop::collection::vec(any_step(), 1..60)) {
        let sides = [Side::new("node", 1, |_, _, _| 0), Side::new("owner", 3, owner), Side::new("other", 3, other)];
        compare(&sides, &steps)?;
    }
}

const YEAR: i64 = 365 * 86_400;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    /// Without a `Date` nothing of an answer depends on anybody's wall clock, and nothing that nodes say to one another may.
    #[test]
    fn clocks_a_year_apart_change_nothing(steps in prop::collection::vec(any_step(), 1..60)) {
        let sides = [
            Side::with_clocks("node", &[0], false, |_, _, _| 0),
            Side::with_clocks("owner", &[YEAR, 0, -YEAR], false, owner),
            Side::with_clocks("other", &[YEAR, 0, -YEAR], false, other),
        ];
        compare(&sides, &steps)?;
    }
}

/// With a `Date`, an owner whose clock is right hands its own arithmetic on, whatever the clock of the node that asks.
#[tokio::test]
async fn a_copy_ages_like_its_owner_whatever_the_clock() {
    for wrong_by in [-YEAR, YEAR] {
        let owner_index = owner(&Side::new("", 3, other).nodes[0], 3, b"tagged");
        let mut clocks = [wrong_by; 3];
        clocks[owner_index] = 0;
        let side = Side::with_clocks("other", &clocks, true, other);
        let asked = side.nodes[(owner_index + 1) % 3].clone();
        for _ in 0..6 {
            asked.ask("tagged").await;
        }
        side.step(&Step::Advance(50));
        let (copy, original) = (asked.get("tagged").await, side.nodes[owner_index].get("tagged").await);
        let age = |node: &Node, answer: &Answer| match &answer.payload {
            Payload::Entry(entry) => {
                (answer.outcome, entry.freshness.age(node.cache.now()), entry.freshness.remaining(node.cache.now()))
            }
            _ => panic!("not from memory"),
        };
        let expected = (Outcome::Hit, Duration::from_secs(50), 10_000);
        assert_eq!(age(&side.nodes[owner_index], &original), expected);
        assert_eq!(age(&asked, &copy), expected, "wrong by {wrong_by} s");
        side.step(&Step::Advance(11));
        assert!(asked.ask("tagged").await.starts_with("revalidated 200 "), "stale when the owner's is");
    }
}

/// RFC 9111 section 5.2.1.7: what the owner has is in the cache, whichever node is asked, and nothing else is fetched.
#[tokio::test]
async fn only_if_cached_is_about_the_fleet() {
    let side = Side::new("other", 3, other);
    let directives = RequestDirectives { only_if_cached: true, ..Default::default() };
    let asked = Request { directives, ..get("tagged", &[]) };
    assert_eq!(side.ask(&asked).await.status, 504, "nobody has it");
    side.ask(&get("tagged", &[])).await;
    side.step(&Step::Behave(Behaviour::Unreachable));
    assert_eq!(side.ask(&asked).await.status, 200, "the owner has it");
    side.step(&Step::Advance(61));
    assert_eq!(side.ask(&asked).await.status, 504, "stale, and nothing has failed that it could stand in for");
}
