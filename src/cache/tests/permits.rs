//! Limited origins: never more requests than allowed, from however many nodes.

use super::*;
use crate::group::Limit;
use crate::permits::GateState;

fn limit(requests_max: usize, waiting_max: usize) -> Limit {
    Limit { requests_max, waiting_max, patience: Duration::from_secs(10) }
}

fn limited_fleet(size: usize, limit: Limit) -> TestFleet {
    TestFleet::build(size, |_| (0..size).collect(), Some(limit))
}

fn limited_node(origin: &Scripted, limit: Limit) -> Arc<Node> {
    Arc::new(Node::limited(origin, Default::default(), 1, Some(limit)))
}

/// Requests of which each holds the origin until its gate opens; `at` says how many are there.
struct Crowd {
    gates: Vec<Gate>,
    requests: tokio::task::JoinSet<(usize, String)>,
    origin: Scripted,
}

impl Crowd {
    /// One request per key, `nodes` taking turns.
    async fn new(origin: &Scripted, nodes: &[Arc<Node>], size: usize) -> Self {
        let mut requests = tokio::task::JoinSet::new();
        let gates: Vec<Gate> = (0..size).map(|_| Gate::new()).collect();
        for (number, gate) in gates.iter().enumerate() {
            let fields = [("Cache-Control", "max-age=60")];
            origin.on(&format!("/{number}"), Script::head(200, &fields, Some(4)).chunk("he").hold(gate).chunk("ad"));
            let node = nodes[number % nodes.len()].clone();
            requests.spawn(async move { (number, node.ask(&number.to_string()).await) });
            // In the order of their numbers.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        Crowd { gates, requests, origin: origin.clone() }
    }

    /// The numbers of the requests that have reached the origin so far.
    fn arrived(&self) -> Vec<usize> {
        (0..self.gates.len()).filter(|number| self.origin.asked(&format!("/{number}")) > 0).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn one_node_lets_so_many_in_and_the_others_in_their_order() {
    let origin = Scripted::new();
    let node = limited_node(&origin, limit(2, 10));
    let mut crowd = Crowd::new(&origin, std::slice::from_ref(&node), 5).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(crowd.arrived(), [0, 1], "a permit is kept until the body has ended");
    let state = || node.cache.permits.state("test", limit(2, 10));
    assert_eq!(state(), GateState { limit: 2, granted: 2, waiting: 3, refused: 0 });
    for (ended, arrived) in [(1, vec![0, 1, 2]), (0, vec![0, 1, 2, 3]), (3, vec![0, 1, 2, 3, 4])] {
        crowd.gates[ended].open();
        assert_eq!(crowd.requests.join_next().await.unwrap().unwrap(), (ended, "miss 200 head".to_owned()));
        origin.arrived(&format!("/{}", arrived[arrived.len() - 1]), 1).await;
        assert_eq!(crowd.arrived(), arrived);
    }
    crowd.gates.iter().for_each(|gate| gate.open());
    while let Some(ended) = crowd.requests.join_next().await {
        assert_eq!(ended.unwrap().1, "miss 200 head");
    }
    assert_eq!(state(), GateState { limit: 2, ..GateState::default() });
}

#[tokio::test(start_paused = true)]
async fn who_finds_the_queue_full_or_waits_too_long_gets_503_and_stale_is_better() {
    let origin = Scripted::new();
    let node = limited_node(&origin, limit(1, 1));
    origin.on("/old", Script::status(200, &[("Cache-Control", "max-age=1, stale-if-error=600")], "old"));
    assert_eq!(node.ask("old").await, "miss 200 old");
    node.clock.advance(Duration::from_secs(5));
    let mut crowd = Crowd::new(&origin, std::slice::from_ref(&node), 3).await;
    assert_eq!(crowd.requests.join_next().await.unwrap().unwrap(), (2, "error 503".to_owned()), "one may wait");
    assert_eq!(node.ask("old").await, "stale 200 old", "no place in the queue");
    assert_eq!(crowd.requests.join_next().await.unwrap().unwrap(), (1, "error 503".to_owned()), "after ten seconds");
    assert_eq!(node.ask("old").await, "stale 200 old", "waited in vain");
    crowd.gates[0].open();
    assert_eq!(crowd.requests.join_next().await.unwrap().unwrap().1, "miss 200 head");
    assert_eq!(
        node.cache.permits.state("test", limit(1, 1)),
        GateState { limit: 1, refused: 2, ..GateState::default() }
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_the_queue_leaves_its_place() {
    let origin = Scripted::new();
    let node = limited_node(&origin, limit(1, 10));
    let mut crowd = Crowd::new(&origin, std::slice::from_ref(&node), 1).await;
    let (_, permits) = (crowd.arrived(), node.cache.permits.clone());
    let waiting = tokio::spawn({
        let (cache, group) = (node.cache.clone(), node.group.clone());
        async move { cache.permit(&group).await.is_ok() }
    });
    while permits.state("test", limit(1, 10)).waiting == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert_eq!(permits.state("test", limit(1, 10)).waiting, 0);
    crowd.gates[0].open();
    crowd.requests.join_next().await;
    assert!(node.cache.permit(&node.group).await.is_ok(), "nobody else has taken the place");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_together_never_asks_for_more() {
    let patient = Limit { patience: Duration::from_secs(600), ..limit(3, 1000) };
    let fleet = limited_fleet(5, patient);
    let mut crowd = Crowd::new(&fleet.origin, &fleet.nodes, 30).await;
    let (mut ended, mut opened) = (0, Vec::new());
    while ended < 30 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let arrived = crowd.arrived();
        assert_eq!(arrived.len(), (ended + 3).min(30), "{ended} have ended");
        let next = *arrived.iter().find(|number| !opened.contains(*number)).unwrap();
        opened.push(next);
        crowd.gates[next].open();
        assert_eq!(crowd.requests.join_next().await.unwrap().unwrap().1, "miss 200 head");
        ended += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_with_many_requests_does_not_keep_the_others_waiting() {
    let fleet = limited_fleet(3, limit(1, 1000));
    let (order, mut waiting) = (Arc::new(Mutex::new(Vec::new())), tokio::task::JoinSet::new());
    let first = fleet.nodes[0].cache.permit(&fleet.nodes[0].group).await.unwrap();
    for (node, count) in [(0, 5), (1, 2), (2, 1)] {
        for _ in 0..count {
            let (node_of, order) = (fleet.nodes[node].clone(), order.clone());
            waiting.spawn(async move {
                let permit = node_of.cache.permit(&node_of.group).await.unwrap();
                order.lock().push(node);
                drop(permit);
            });
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    }
    drop(first);
    while let Some(ended) = waiting.join_next().await {
        ended.unwrap();
    }
    assert_eq!(*order.lock(), [0, 1, 2, 0, 1, 0, 0, 0]);
}

/// The node that grants, by everybody's view.
fn granting(fleet: &TestFleet) -> usize {
    fleet.owner("permits\0test")
}

#[tokio::test(start_paused = true)]
async fn permits_are_counted_on_when_the_granting_node_dies_and_comes_back() {
    let fleet = limited_fleet(3, limit(2, 1000));
    let dead = granting(&fleet);
    let others: Vec<_> = (0..3).filter(|node| *node != dead).map(|node| fleet.nodes[node].clone()).collect();
    let mut held = Vec::new();
    for node in &others {
        held.push(node.cache.permit(&node.group).await.unwrap());
    }
    fleet.down[dead].store(true, Ordering::SeqCst);
    let waiting = tokio::spawn({
        let node = others[0].clone();
        async move { node.cache.permit(&node.group).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished(), "the two that are at the origin count at the next node");
    drop(held.pop());
    let third = waiting.await.unwrap();

    fleet.down[dead].store(false, Ordering::SeqCst);
    let state = || fleet.nodes[dead].cache.permits.state("test", limit(2, 1000));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(state().granted, 2, "they are told to whoever is the one to grant");
    let waiting = tokio::spawn({
        let node = others[1].clone();
        async move { node.cache.permit(&node.group).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished());
    drop((held, third));
    drop(waiting.await.unwrap());
    tokio::time::sleep(Duration::from_millis(1)).await;
    for node in &fleet.nodes {
        assert_eq!(node.cache.permits.state("test", limit(2, 1000)).granted, 0);
    }
}

/// What a node has at the origin from a time when it was alone counts for whoever grants now.
#[tokio::test(start_paused = true)]
async fn permits_of_a_node_alone_are_counted_when_it_gets_company() {
    let fleet = limited_fleet(2, limit(2, 1000));
    let first = granting(&fleet);
    let alone = 1 - first;
    let node = &fleet.nodes[alone];
    node.cache.set_fleet(Fleet::alone());
    let held = [node.cache.permit(&node.group).await.unwrap(), node.cache.permit(&node.group).await.unwrap()];
    let granted = |place: usize| fleet.nodes[place].cache.permits.state("test", limit(2, 1000)).granted;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((granted(alone), granted(first)), (2, 0));
    fleet.see(alone, &[0, 1]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((granted(alone), granted(first)), (0, 2));
    let mut waiting = tokio::task::JoinSet::new();
    wait_for_permits(&mut waiting, &fleet.nodes[first], 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(waiting.try_join_next().is_none(), "two are at the origin");
    drop(held);
    waiting.join_next().await.unwrap().unwrap();
}

type WaitingPermits = tokio::task::JoinSet<Option<Permit>>;

fn wait_for_permits(waiting: &mut WaitingPermits, node: &Arc<Node>, count: usize) {
    for _ in 0..count {
        let node = node.clone();
        waiting.spawn(async move { node.cache.permit(&node.group).await.unwrap() });
    }
}

/// Those at the origin are counted elsewhere from then on, which makes no room for those in the queue that they leave.
#[tokio::test(start_paused = true)]
async fn who_waits_where_permits_are_no_longer_granted_waits_where_they_are() {
    for by_list in [false, true] {
        let patient = Limit { patience: Duration::from_secs(600), ..limit(2, 1000) };
        let fleet = limited_fleet(3, patient);
        let first = granting(&fleet);
        let without: Vec<usize> = (0..3).filter(|place| *place != first).collect();
        let others: Vec<Arc<Node>> = without.iter().map(|place| fleet.nodes[*place].clone()).collect();
        let make_first = |is_first: bool| match by_list {
            true => without.iter().for_each(|place| fleet.see(*place, if is_first { &[0, 1, 2] } else { &without })),
            false => fleet.leaving[first].store(!is_first, Ordering::SeqCst),
        };
        make_first(false);
        let (mut held, mut waiting) = (Vec::new(), tokio::task::JoinSet::new());
        for node in &others {
            held.push(node.cache.permit(&node.group).await.unwrap());
        }
        others.iter().for_each(|node| wait_for_permits(&mut waiting, node, 3));
        tokio::time::sleep(Duration::from_secs(5)).await;
        make_first(true);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let state = || fleet.nodes[first].cache.permits.state("test", patient);
        assert!(waiting.try_join_next().is_none(), "two are at the origin");
        assert_eq!((state().granted, state().waiting), (2, 6));
        while let Some(permit) = waiting_after(&mut held, &mut waiting).await {
            assert!(state().granted <= 2);
            held.push(permit);
        }
    }
}

/// The next permit, after one was given back.
async fn waiting_after(held: &mut Vec<Option<Permit>>, waiting: &mut WaitingPermits) -> Option<Option<Permit>> {
    held.remove(0);
    Some(waiting.join_next().await?.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_hands_the_counting_over() {
    let fleet = limited_fleet(3, limit(1, 1000));
    let leaving = granting(&fleet);
    let other = &fleet.nodes[(leaving + 1) % 3];
    let permit = other.cache.permit(&other.group).await.unwrap();
    fleet.nodes[leaving].cache.permits.set_leaving(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let granted = |node: &Arc<Node>| node.cache.permits.state("test", limit(1, 1000)).granted;
    assert_eq!(granted(&fleet.nodes[leaving]), 0);
    assert_eq!(fleet.nodes.iter().map(granted).sum::<usize>(), 1);
    drop(permit);
}
