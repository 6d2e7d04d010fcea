//! `max_concurrency`: however many nodes and clients, the origin never has more requests at once than it may.

use crate::kit::client::Client;
use crate::kit::fleet::Fleet;
use crate::kit::node::{Node, Setup};
use crate::kit::origin::{Gate, Origin, Reply};
use crate::kit::poll::until;

/// Requests that stay at the origin until the test lets them go on.
struct Crowd<'a> {
    origin: &'a Origin,
    gates: Vec<Gate>,
    clients: Vec<Client>,
}

impl<'a> Crowd<'a> {
    /// One request for each target, `nodes` in turn; with `passing`, every second one is a `POST`.
    async fn send(origin: &'a Origin, nodes: &[Node], size: usize, passing: bool) -> Crowd<'a> {
        let gates: Vec<Gate> = (0..size).map(|_| Gate::new()).collect();
        let mut clients = Vec::new();
        for (number, gate) in gates.iter().enumerate() {
            let reply = Reply::ok("answer").header("Cache-Control", "max-age=600");
            origin.on(&format!("/{number}"), reply.hold(gate));
            let mut client = nodes[number % nodes.len()].connect().await;
            match passing && number % 2 == 1 {
                false => client.ask(&format!("/{number}")).await,
                true => client.send(format!("POST /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")).await,
            }
            clients.push(client);
        }
        Crowd { origin, gates, clients }
    }

    /// How many requests have come to the origin so far.
    fn arrived(&self) -> usize {
        self.origin.log().len()
    }

    /// Lets the request go on that came as the so-manieth.
    fn open(&self, place: usize) {
        let number: usize = self.origin.log()[place].target[1..].parse().expect("a number");
        self.gates[number].open();
    }
}

/// Permits in use and requests in queues, by what the nodes say.
async fn permits(nodes: &[Node]) -> (Vec<u64>, u64) {
    let (mut granted, mut waiting) = (Vec::new(), 0);
    for node in nodes {
        let permits = &node.group("all").await["permits"];
        granted.push(permits["granted"].as_u64().expect("a number"));
        waiting += permits["waiting"].as_u64().expect("a number");
    }
    (granted, waiting)
}

fn limited(origin: &Origin) -> Setup {
    Setup::group(&format!("origin: '{}', max_concurrency: 4, queue: {{ timeout: 60s }}", origin.url()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_lets_no_more_requests_to_the_origin_than_it_may_have() {
    let origin = Origin::start().await;
    let fleet = Fleet::start(3, &limited(&origin)).await;
    let mut crowd = Crowd::send(&origin, &fleet.nodes, 20, true).await;
    until("four are at the origin and sixteen wait", async || {
        let (granted, waiting) = permits(&fleet.nodes).await;
        (granted.iter().sum::<u64>(), waiting) == (4, 16) && crowd.arrived() >= 4
    })
    .await;
    assert_eq!(crowd.arrived(), 4);
    for place in 0..20 {
        crowd.open(place);
        let next = (place + 5).min(20);
        until("the next one comes", async || crowd.arrived() >= next).await;
        assert_eq!(crowd.arrived(), next, "one goes, one comes");
    }
    for client in &mut crowd.clients {
        assert_eq!(client.answer().await.status(), 200);
    }
    until("all permits are given back", async || permits(&fleet.nodes).await == (vec![0, 0, 0], 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_others_have_at_the_origin_counts_on_when_the_granting_node_is_killed() {
    let origin = Origin::start().await;
    let mut fleet = Fleet::start(3, &limited(&origin)).await;
    let mut first = Crowd::send(&origin, &fleet.nodes, 1, false).await;
    until("one is at the origin", async || first.arrived() == 1).await;
    let (granted, _) = permits(&fleet.nodes).await;
    let granting = granted.iter().position(|granted| *granted == 1).expect("one node grants");
    first.open(0);
    assert_eq!(first.clients[0].answer().await.status(), 200);
    // It has no clients of its own: what they asked of others would end with them.
    let mut granting = fleet.nodes.remove(granting);
    let crowd = Crowd::send(&origin, &fleet.nodes, 21, false).await;
    until("four are at the origin", async || {
        let waiting = granting.group("all").await["permits"]["waiting"].as_u64();
        crowd.arrived() == 5 && waiting == Some(16)
    })
    .await;
    let origins = &granting.group("all").await["origins"];
    let own = origins[&format!("{}/", crowd.origin.url())]["in_flight"].as_u64().expect("a number") as usize;
    granting.kill();
    until("the survivors' requests are counted again, and others take the place of those that died", async || {
        permits(&fleet.nodes).await.0.iter().sum::<u64>() == 4 && crowd.arrived() >= 5 + own
    })
    .await;
    assert_eq!(crowd.arrived(), 5 + own, "so many came as sockets were closed");
}
