//! Members that find one another: the real gossip of each node, sealed, in datagrams that the simulated network carries, loses and
//! doubles. What is found becomes the node's view of the fleet as it does in the server.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use groupcache_proxy::membership::gossip::{Gossip, Member, Settings};
use tokio::time::Instant;

use crate::network::{Datagrams, Place};
use crate::node::{Node, place_of, url_of};
use crate::random::Random;
use crate::world::World;

/// A life begins to gossip, and does until it ends.
pub fn begin(world: &Arc<World>, node: &Arc<Node>) {
    let random = Random::new(world.seed ^ node.incarnation, "gossip");
    let gossip = Gossip::new(Settings {
        own: Member { url: url_of(node.place), weight: 1 },
        address: address_of(node.place),
        life: random.number(1..u64::MAX),
        secrets: vec![b"secret".to_vec()],
        seed: std::array::from_fn(|_| random.number(0..256) as u8),
    });
    let inbox = world.network.bind(node.place);
    tokio::spawn(run(Arc::downgrade(world), node.clone(), gossip, inbox));
}

async fn run(world: Weak<World>, node: Arc<Node>, mut gossip: Gossip, mut inbox: Datagrams) {
    let Some((network, size)) = world.upgrade().map(|world| (world.network.clone(), world.size())) else { return };
    let (place, begun) = (node.place, Instant::now());
    let mut introduce_at = begun;
    let mut found: Option<(Instant, Vec<Place>)> = None;
    loop {
        let now = begun.elapsed();
        if introduce_at <= Instant::now() {
            for seed in (0..size).filter(|seed| *seed != place) {
                gossip.introduce(address_of(seed), now);
            }
            introduce_at = Instant::now() + if gossip.alive() == 0 { INTRODUCE_ALONE } else { INTRODUCE_PAUSE };
        }
        for (to, packet) in gossip.take_packets() {
            network.send(place, place_at(to), packet);
        }
        if let Some(members) = gossip.take_members(now) {
            let view = members.iter().filter_map(|member| place_of(&member.url)).collect();
            let at = found.map_or_else(|| Instant::now() + COALESCE, |(at, _)| at);
            found = Some((at, view));
        }
        if let Some((_, view)) = found.take_if(|(at, _)| *at <= Instant::now()) {
            let Some(world) = world.upgrade() else { return };
            if world.view(place) != view {
                world.see(place, view);
            }
        }
        let next = gossip.next_time().map_or(introduce_at, |next| introduce_at.min(begun + next));
        let next = found.as_ref().map_or(next, |(at, _)| next.min(*at));
        let received = tokio::select! {
            biased;
            () = node.leaving.notified() => {
                gossip.leave(begun.elapsed());
                for (to, packet) in gossip.take_packets() {
                    network.send(place, place_at(to), packet);
                }
                return;
            }
            Some(received) = inbox.recv() => Some(received),
            () = tokio::time::sleep_until(next) => None,
        };
        // What comes while it is frozen waits in its socket.
        network.running(place).await;
        if node.is_dead() {
            return;
        }
        match received {
            // What is dropped is counted by whoever gossips.
            Some((from, packet)) => drop(gossip.take_packet(&packet, address_of(from), begun.elapsed())),
            None => gossip.take_time(begun.elapsed()),
        }
    }
}

fn address_of(place: Place) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + place as u8], 7946))
}

fn place_at(address: SocketAddr) -> Place {
    match address {
        SocketAddr::V4(address) => usize::from(address.ip().octets()[3]) - 1,
        SocketAddr::V6(_) => unreachable!("nobody has such an address"),
    }
}

/// As in the server: lists that come together are one, and how often a node introduces itself to all places.
const COALESCE: Duration = Duration::from_millis(50);
const INTRODUCE_ALONE: Duration = Duration::from_millis(200);
const INTRODUCE_PAUSE: Duration = Duration::from_secs(10);
/// How long former members are told of purges (`fleet.peers.forget`): longer than any run.
pub const FORGET: Duration = Duration::from_secs(600);
