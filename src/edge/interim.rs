//! Interim answers (1xx) on their way to a client that waits for its answer (RFC 9110 section 15.2).
//!
//! The cache hands them to a [`Heard`] while the client's request is polled, and only then: so the connection takes them out
//! after each poll, and nobody has to be woken. HTTP/1.0 knows no interim answers and never gets one.
//!
//! Those of requests that pass come through pingora; [`super::pass`] makes the same of them.

use std::pin::Pin;
use std::task::Poll;

use parking_lot::Mutex;

use super::head_writer::{HeadWriter, Http1Head, Http2Head};
use super::response::{FieldRules, Framing};
use crate::source::{Interim, InterimSink};

/// What was heard and not yet sent. A flight gives few and small ones, so they are not counted again here.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Vec<Interim>>);

impl InterimSink for Heard {
    fn hear(&self, interim: Interim) {
        self.0.lock().push(interim);
    }
}

impl Heard {
    /// Waits for the answer or for interim ones. The answer may come together with interim ones, which stand before it.
    pub async fn next<F: Future>(&self, mut answer: Pin<&mut F>) -> (Vec<Interim>, Option<F::Output>) {
        std::future::poll_fn(|context| {
            let answer = answer.as_mut().poll(context);
            let interims = std::mem::take(&mut *self.0.lock());
            match answer {
                Poll::Ready(answer) => Poll::Ready((interims, Some(answer))),
                Poll::Pending if interims.is_empty() => Poll::Pending,
                Poll::Pending => Poll::Ready((interims, None)),
            }
        })
        .await
    }
}

/// Writes one as HTTP/1.1 has it. Fields that the group removes from answers are removed from these too; none are set.
pub fn write(interim: &Interim, to_client: &FieldRules, out: &mut Vec<u8>) {
    write_head(interim, to_client, &mut Http1Head(out));
    out.extend_from_slice(b"\r\n");
}

/// The same for HTTP/2 (RFC 9113 section 8.1).
pub fn head_of_http_2(interim: &Interim, to_client: &FieldRules) -> http::Response<()> {
    let mut head = Http2Head::default();
    write_head(interim, to_client, &mut head);
    head.finish(Framing::None)
}

fn write_head(interim: &Interim, to_client: &FieldRules, head: &mut impl HeadWriter) {
    head.status(interim.status);
    for (name, value) in interim.fields.iter().filter(|(name, _)| !to_client.drops(name)) {
        head.line(name, value);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::fields::Fields;

    fn hint(link: &str) -> Interim {
        Interim { status: 103, fields: Fields::from_pairs([("Link", link), ("Server", "x")]).unwrap() }
    }

    #[tokio::test]
    async fn they_come_before_the_answer_each_once_and_in_order() {
        let heard = Heard::default();
        let mut answer = pin!(async {
            heard.hear(hint("a"));
            tokio::task::yield_now().await;
            heard.hear(hint("b"));
            heard.hear(hint("c"));
            7
        });
        assert_eq!(heard.next(answer.as_mut()).await, (vec![hint("a")], None));
        assert_eq!(heard.next(answer.as_mut()).await, (vec![hint("b"), hint("c")], Some(7)));
    }

    #[test]
    fn what_a_group_removes_is_removed_and_nothing_is_added() {
        let rules = FieldRules {
            set: Fields::from_pairs([("X-Frame-Options", "DENY")]).unwrap(),
            removed: vec!["server".to_owned()],
        };
        let mut out = Vec::new();
        write(&hint("</a.css>"), &rules, &mut out);
        assert_eq!(out, b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
        let head = head_of_http_2(&hint("</a.css>"), &rules);
        assert_eq!(head.status(), 103);
        assert_eq!(head.headers().iter().collect::<Vec<_>>(), [(&http::header::LINK, &"</a.css>".parse().unwrap())]);
    }
}
