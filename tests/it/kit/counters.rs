//! How the counters of a node add up, as `src/stats.rs` says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// What does not add up in these statistics; empty if all does. Counters are read one by one, so that sums may be off while
/// a request is under way.
pub fn contradictions(stats: &Value) -> Vec<String> {
    let groups = stats["groups"].as_object().expect("groups");
    groups
        .iter()
        .flat_map(|(name, group)| of_group(group).into_iter().map(move |what| format!("{name}: {what}")))
        .collect()
}

fn of_group(group: &Value) -> Vec<String> {
    let number = |path: &str| group.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}"));
    let reasons: u64 = group["miss_reasons"].as_object().expect("reasons").values().filter_map(Value::as_u64).sum();
    let outcomes =
        ["hit", "stale", "revalidated", "miss", "pass", "error"].map(|word| number(&format!("/client/{word}")));
    let (gets, hits, loads) = (number("/gets"), number("/cache_hits"), number("/loads"));
    let found = number("/main/hits") + number("/hot/hits");
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    let (deduped, collapsed) = (number("/loads_deduped"), number("/loads_collapsed"));
    check(
        loads == deduped + collapsed,
        format!("loads {loads} = loads_deduped {deduped} + loads_collapsed {collapsed}"),
    );
    check(hits <= found, format!("cache_hits {hits} <= main.hits + hot.hits {found}"));
    check(hits + loads <= gets, format!("cache_hits {hits} + loads {loads} <= gets {gets}"));
    check(loads <= reasons, format!("loads {loads} <= the sum of miss_reasons {reasons}"));
    check(hits + reasons <= gets, format!("cache_hits {hits} + the sum of miss_reasons {reasons} <= gets {gets}"));
    let (served, requests) = (number("/server_requests"), number("/client/requests"));
    check(served <= gets, format!("server_requests {served} <= gets {gets}"));
    check(gets <= served + requests, format!("gets {gets} <= server_requests {served} + client.requests {requests}"));
    check(requests == outcomes.iter().sum::<u64>(), format!("client.requests {requests} = the sum of {outcomes:?}"));
    wrong
}

/// The statistics by a blocking question, for the end of a test, which waits for nothing else. `None` from a node that does
/// not answer or wants a token.
pub fn ask(admin: SocketAddr) -> Option<Value> {
    let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /_groupcache/stats HTTP/1.0\r\nHost: any\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split(' ').nth(1).filter(|status| *status == "200")?;
    serde_json::from_str(body).ok()
}

/// Whether nobody waits for anything, so that sums hold.
pub fn is_idle(stats: &Value) -> bool {
    // The connection that asks is one, where it is counted.
    stats["flights"] == 0 && stats["connections"].as_u64().is_some_and(|open| open <= 1)
}

#[test]
fn what_does_not_add_up_is_found() {
    let group = serde_json::json!({
        "gets": 5, "cache_hits": 2, "loads": 3, "loads_deduped": 2, "loads_collapsed": 1, "server_requests": 1,
        "main": { "hits": 1 }, "hot": { "hits": 1 }, "miss_reasons": { "uri-miss": 2, "stale": 1 },
        "client": { "requests": 4, "hit": 2, "stale": 0, "revalidated": 0, "miss": 2, "pass": 0, "error": 0 },
    });
    let stats = |group: &Value| serde_json::json!({ "groups": { "all": group } });
    assert_eq!(contradictions(&stats(&group)), Vec::<String>::new());
    for counter in ["gets", "cache_hits", "loads", "loads_deduped"] {
        let mut wrong = group.clone();
        wrong[counter] = (group[counter].as_u64().unwrap() + 1).into();
        assert!(!contradictions(&stats(&wrong)).is_empty(), "one {counter} more adds up, too");
    }
}
