//! `stats`: the numbers of a node as a table.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::{NodeUrl, get};
use super::{Exit, Failure, NodeArguments, print};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  groupcache-proxy stats\n  groupcache-proxy stats http://127.0.0.1:8081 --watch\n  \
                        groupcache-proxy stats --json | jq .groups"
)]
pub(super) struct Arguments {
    /// URL of the node
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Show them again every second
    #[arg(long)]
    watch: bool,
    /// The JSON as the node sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let node = arguments.node.find(arguments.url.as_deref())?;
    let token = arguments.node.token()?;
    loop {
        let body = fetch(&node, token.as_deref())?;
        let text = match arguments.json {
            true => format!("{}\n", String::from_utf8_lossy(&body).trim_end()),
            false => {
                let stats = serde_json::from_slice(&body)
                    .map_err(|error| Failure::unable(format!("{node} sends no statistics: {error}")))?;
                table(&node.to_string(), &stats)
            }
        };
        if !arguments.watch {
            print(&text)?;
            return Ok(Exit::Done);
        }
        match arguments.json {
            true => print(&text)?,
            // Home, the table, and nothing of the last one after it: without a flash between two tables.
            false => print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))?,
        }
        std::thread::sleep(WATCH_PAUSE);
    }
}

fn fetch(node: &NodeUrl, token: Option<&str>) -> Result<Vec<u8>, Failure> {
    let reply = get(node, "/_groupcache/stats", token)?;
    match reply.status {
        200 => Ok(reply.body),
        status => Err(Failure::unable(format!("{node} answers {status} instead of statistics"))),
    }
}

/// The table. Whatever is missing or of another type shows as a dash: an older or newer node is still readable.
fn table(node: &str, stats: &Value) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{node}  {}  version {}  up {}  connections {}  flights {}",
        word(&stats["state"]),
        word(&stats["version"]),
        duration(&stats["uptime_seconds"]),
        count(&stats["connections"]),
        count(&stats["flights"]),
    );
    let memory = &stats["memory"];
    let _ = writeln!(
        text,
        "memory  {} of {} used, {} resident",
        bytes(&memory["used_bytes"]),
        bytes(&memory["limit_bytes"]),
        bytes(&memory["resident_bytes"]),
    );
    if let Some(error) = stats["config"]["last_error"].as_str() {
        let _ = writeln!(text, "the last reload failed: {}", error.replace('\n', "; "));
    }
    if let Some(groups) = stats["groups"].as_object() {
        let mut rows = vec![
            [
                "group", "requests", "hits 1m", "hit", "stale", "reval.", "miss", "pass", "error", "main", "hot",
                "origin", "peers",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for (name, group) in groups {
            let client = &group["client"];
            rows.push(vec![
                name.clone(),
                count(&client["requests"]),
                client["hit_ratio_1m"].as_f64().map_or("-".into(), |ratio| format!("{:.1}%", ratio * 100.0)),
                count(&client["hit"]),
                count(&client["stale"]),
                count(&client["revalidated"]),
                count(&client["miss"]),
                count(&client["pass"]),
                count(&client["error"]),
                bytes(&group["main"]["bytes"]),
                bytes(&group["hot"]["bytes"]),
                count(&group["local_loads"]),
                count(&group["peer_loads"]),
            ]);
        }
        write_rows(&mut text, &rows);
    }
    let fleet = &stats["fleet"];
    if let Some(peers) = fleet["peers"].as_array().filter(|peers| !peers.is_empty()) {
        let lease = &fleet["lease"]["state"];
        // An older node does not tell; where nobody keeps leases there is nothing to tell.
        let lease = match lease.as_str() {
            None | Some("unneeded") => String::new(),
            Some(_) => format!("  lease {}", word(lease)),
        };
        let lease = match fleet["lease"]["previous_lists"].as_u64() {
            None | Some(0) => lease,
            Some(lists) => format!("{lease} (needs majorities of {lists} lists of members before)"),
        };
        let _ = writeln!(text, "\nring {}  {}{lease}", word(&fleet["ring"]), word(&fleet["ring_id"]));
        let mut rows =
            vec![["peer", "state", "protocol", "version", "share", "requests", "errors"].map(str::to_owned).to_vec()];
        for peer in peers {
            let other_ring = peer["ring_id"].is_string() && peer["ring_id"] != fleet["ring_id"];
            rows.push(vec![
                word(&peer["url"]),
                if other_ring { format!("{} (another ring)", word(&peer["state"])) } else { word(&peer["state"]) },
                word(&peer["protocol"]),
                word(&peer["version"]),
                peer["ring_share"].as_f64().map_or("-".into(), |share| format!("{:.1}%", share * 100.0)),
                count(&peer["requests"]),
                count(&peer["errors"]),
            ]);
        }
        write_rows(&mut text, &rows);
    }
    text
}

/// Columns as wide as their widest cell; the first is aligned left, numbers right.
fn write_rows(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column| rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    text.push('\n');
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            match line.is_empty() {
                true => line.extend([cell, &*padding]),
                false => line.extend(["  ", &padding, cell]),
            }
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// A text for a terminal: what a node sends is not trusted to hold no control characters.
fn word(value: &Value) -> String {
    value.as_str().map_or("-".into(), |text| text.chars().filter(|c| !c.is_control()).collect())
}

fn count(value: &Value) -> String {
    value.as_u64().map_or("-".into(), |number| {
        let digits = number.to_string();
        let grouped: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().map(|chunk| std::str::from_utf8(chunk).unwrap_or_default()).collect();
        grouped.join(",")
    })
}

fn bytes(value: &Value) -> String {
    let Some(bytes) = value.as_u64() else { return "-".into() };
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

fn duration(value: &Value) -> String {
    let Some(seconds) = value.as_u64() else { return "-".into() };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

const WATCH_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (number, as_count, as_bytes, as_duration) in
            [(0, "0", "0 B", "0s"), (999, "999", "999 B", "16m 39s"), (1_048_576, "1,048,576", "1.0 MiB", "12d 3h")]
        {
            let value = json!(number);
            assert_eq!((&*count(&value), &*bytes(&value), &*duration(&value)), (as_count, as_bytes, as_duration));
        }
        assert_eq!(count(&Value::Null), "-");
    }

    #[test]
    fn the_table_has_a_row_for_each_group_and_peer() {
        let stats = json!({
            "state": "ready", "version": "0.1.0", "uptime_seconds": 61, "connections": 2, "flights": 0,
            "memory": { "limit_bytes": 1073741824, "used_bytes": 1024, "resident_bytes": 2048 },
            "config": { "last_error": "a\nb" },
            "fleet": { "ring": "balanced", "ring_id": "9f", "peers": [
                { "url": "http://b\u{1b}[2J:1", "state": "up", "protocol": "native", "version": "0.1.0",
                  "ring_id": "00", "ring_share": 0.5, "requests": 3, "errors": 0 } ] },
            "groups": { "thumbnails": { "client": { "requests": 1234, "hit_ratio_1m": 0.5 }, "main": { "bytes": 4096 } } },
        });
        let text = table("http://a:1", &stats);
        let expected = "\
http://a:1  ready  version 0.1.0  up 1m 1s  connections 2  flights 0
memory  1.0 KiB of 1.0 GiB used, 2.0 KiB resident
the last reload failed: a; b

group       requests  hits 1m  hit  stale  reval.  miss  pass  error     main  hot  origin  peers
thumbnails     1,234    50.0%    -      -       -     -     -      -  4.0 KiB    -       -      -

ring balanced  9f

peer                       state  protocol  version  share  requests  errors
http://b[2J:1  up (another ring)    native    0.1.0  50.0%         3       0
";
        assert_eq!(text, expected);
    }
}
