//! An HTTP caching reverse proxy whose nodes share one deduplicated cache.
//!
//! A request path is a *key* in a *group*. Each node looks in its own memory, asks the key's *owner* on the hash ring, and
//! only the owner's single flight asks the origin. The model is groupcache's; the answers are HTTP's (RFC 9110 to 9112).
//!
//! This page is the map of the house: how a request goes through it, what its words mean, what always holds, and where to
//! read on. Using the program needs none of it; see README.md.
//!
//! # The life of a request
//!
//! 1. [`server`] has bound the listeners. [`edge`] reads every request head, whole, under one deadline and by strict rules.
//!    `/_groupcache/` belongs to [`admin`] and never to a group.
//! 2. Host and path choose the [`group`]; what follows the matched prefix becomes the [`key`] ([`semantics`] says how). The
//!    clock is read once.
//! 3. [`Cache::get`](cache::Cache::get) looks in the [`store`] and asks [`freshness`]: a fresh entry is the answer; a stale
//!    one may be, while it is refreshed behind.
//! 4. Otherwise the request joins the [`flight`] of its key, or opens it. The *fill* is a task of its own ([`fill`]): it asks
//!    the [`fleet`] who owns the key, and reads from one [`source`], the owner ([`peer`]) or the [`origin`].
//! 5. Head and body go to every reader as they arrive, over the hop too.
//! 6. If [`freshness`] allows, the whole body becomes an [`entry`] in the store: *main* at the owner; *hot* elsewhere, if the
//!    key is asked for often enough here.
//! 7. [`edge`] writes the answer: conditions, ranges, `Age`, `Cache-Status`. What a cache has no part in, other methods
//!    for instance, passes through to the origin, streamed both ways.
//!
//! A peer's question comes in by another door, [`Cache::get_as_owner`](cache::Cache::get_as_owner): it is answered from
//! memory or from the origin, and never asked of a third node.
//!
//! # Words
//!
//! One word, one meaning, in code, configuration, statistics and log.
//!
//! | word | means |
//! |---|---|
//! | *node* | one running process of this program |
//! | *fleet* | the nodes that share a ring |
//! | *peer* | another node of the fleet, seen from this one |
//! | *former member* | one that was found and is not found any more; it is told of purges until it has said goodbye or is forgotten |
//! | *origin* | the server or directory that has the truth |
//! | *group* | a part of the configuration: which requests, from which origin, by which rules |
//! | *key* | the bytes that name a response within its group; the same for look-up, ring, peers and origin |
//! | *variant* | one of several responses under one key, told apart by the request fields that `Vary` names |
//! | *entry* | one stored response: head, freshness facts, body; never changed once made |
//! | *slot* | all variants stored under one key; they weigh and go together |
//! | *ring* | the function from a key to the order in which nodes are asked for it |
//! | *owner* | the first node in that order |
//! | *main* | the memory of keys that this node owns or loaded in place of their owner |
//! | *hot* | the memory of copies of foreign keys that are asked for often here |
//! | *replica* | a hot copy that the owner of a very hot key gave to a further node, to answer for it |
//! | *store* | both, under one budget in bytes |
//! | *ledger* | the account of every byte that is alive, in the store or not |
//! | *cache* | the decision over all of it |
//! | *source* | whoever is asked for a key: an origin, a directory, a peer |
//! | *fill* | the work of getting one response, as a task that belongs to no client |
//! | *flight* | a fill and its readers |
//! | *reader* | one request that follows a flight |
//! | *route* | whether a flight may ask peers ([`Route::Fleet`](cache::Route::Fleet)) or loads here ([`Route::Here`](cache::Route::Here)) |
//! | *hop* | the way between two nodes |
//! | *permit* | the right of one request to be at a limited origin, counted for the whole fleet |
//! | *pass* | to hand a request to the origin uncached |
//! | *purge* | to make entries disappear (or, soft, stale) on all nodes, named by key, prefix, path, group or tag |
//! | *lease* | the right of a node to answer from memory for a while, which a majority of a `strict` fleet gives |
//! | *stamp* | which purges a piece of data is certainly not older than |
//! | *outcome* | what became of a client's request ([`Outcome`](stats::Outcome)) |
//!
//! # What always holds
//!
//! Much of this is the absence of something, which no single place in the code shows.
//!
//! - **No module below the edges names pingora.** Only [`edge`], [`peer`], [`origin`], [`server`], and one check of
//!   certificates in [`config`] do. (Test: `tests/it/tidy.rs`, as for the order of modules below.)
//! - **Nothing waits while a lock is held.** Locks cover a look and a change of fields; waking, sending and evicting come
//!   after. (Lint: `await_holding_lock`.)
//! - **No system clock below the edges.** Time is a parameter ([`clock::Now`]); [`clock`] is its only reader. Between
//!   nodes travel ages and remaining lifetimes, never instants. (Lint: `disallowed_methods`.)
//! - **A request crosses at most one hop**, whatever two nodes believe about the ring: a peer's question opens only flights
//!   that load here, and flights of the two routes never wait for one another in a circle.
//! - **A fill belongs to no client.** The first requester is a reader like the rest; one that leaves takes nothing along.
//! - **An unclean body is never stored.** A body is whole only when its framing, and over the hop its end frame, says so.
//!   Until then every reader sees a break as a break.
//! - **A peer's silence never fails a request that the origin could answer.** The next node on the ring is asked, and in
//!   the end this one loads.
//! - **What a purge removed does not come back.** Nothing is stored that was fetched before it, wherever it comes from, and
//!   nobody who asks after its acknowledgement is answered with it ([`purge`], [`fences`]).
//! - **What may not be shared is given to nobody but the request that caused it.** Readers that joined before go on alone.
//! - **Every byte alive is charged once**, by the block that holds it, until its last holder lets go ([`memory`]).
//! - **What comes from outside never panics**: clients, peers, origins and files bring errors. (Lints: `unwrap_used`,
//!   `panic`.)
//! - **No label, counter or log field is named by a request.** What grows with requests is bounded.
//!
//! # Modules in reading order
//!
//! Imports point down this list only; modules in one row do not know each other, but for those joined by a plus.
//!
//! | modules | |
//! |---|---|
//! | [`cli`] | commands, arguments, exit codes |
//! | [`server`] + [`admin`] | builds each part once, hands services to pingora; the endpoints that report it |
//! | [`edge`], [`peer`], [`origin`] | the edges: towards clients, between nodes, towards origins |
//! | [`cache`] + [`fill`] + [`following`] + [`hop`] + [`invalidate`] + [`leasing`] + [`purging`] + [`renewal`] + [`replicas`] + [`warm`] | **read these first**: every decision about a request |
//! | [`slot`], [`parts`], [`permits`] | the variants under one key; what is known of a response in pieces; how many requests are at an origin |
//! | [`entry`], [`fences`], [`fleet`], [`flight`], [`group`], [`heat`], [`remembered`], [`store`] | what the decision works with |
//! | [`source`] | the seam to whoever has the answer, and the three kinds of failure |
//! | [`freshness`], [`purge`], [`semantics`], [`logging`] | the rules of HTTP as pure functions; which purges there are; the log |
//! | [`clock`], [`config`], [`fields`], [`key`], [`membership`], [`memory`], [`ring`], [`samples`], [`stats`] | leaves: nothing of ours below them |

pub mod admin;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod edge;
pub mod entry;
pub mod fences;
pub mod fields;
pub mod fill;
pub mod fleet;
pub mod flight;
pub mod following;
pub mod freshness;
pub mod group;
pub mod heat;
pub mod hop;
pub mod invalidate;
pub mod key;
pub mod leasing;
pub mod logging;
pub mod membership;
pub mod memory;
pub mod origin;
pub mod parts;
pub mod peer;
pub mod permits;
pub mod purge;
pub mod purging;
pub mod remembered;
pub mod renewal;
pub mod replicas;
pub mod ring;
pub mod samples;
pub mod semantics;
pub mod server;
pub mod slot;
pub mod source;
pub mod stats;
pub mod store;
#[cfg(test)]
mod testing;
pub mod warm;
