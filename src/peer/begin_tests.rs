//! Questions that are begun without anybody who waits.

use tokio::sync::oneshot;

use super::*;
use crate::fleet::Begun;
use crate::source::Deaf;

/// What the first of the answer is.
async fn begun(peer: &NativePeer, key: &'static str) -> Begun {
    let (sender, receiver) = oneshot::channel();
    peer.begin(&ask(key), EntryId::default(), Box::new(move |begun| assert!(sender.send(begun).is_ok())));
    receiver.await.unwrap()
}

async fn answered(begun: Begun) -> Result<Vec<u8>, FetchError> {
    match begun {
        Begun::Whole(_, body) => panic!("whole: {body:?}"),
        Begun::Later(pending) => read(pending.answer(&Deaf).await?).await,
    }
}

#[tokio::test(start_paused = true)]
async fn what_memory_has_comes_whole_and_without_a_future() {
    let Pair { script, peer, shutdown: _shutdown, .. } = pair();
    script.set("ready", Answer::Body(vec![Bytes::from_static(b"body")]));
    // The first question waits for the connection.
    assert_eq!(answered(begun(&peer, "ready").await).await.unwrap(), b"body");
    for body in [&b"ready"[..], b"", &[7; 5000]] {
        script.set("ready", Answer::Body(vec![Bytes::copy_from_slice(body)]));
        let Begun::Whole(fetched, whole) = begun(&peer, "ready").await else { panic!("it is all there") };
        assert_eq!((fetched.status, fetched.content_length, fetched.hop), (200, Some(body.len() as u64), Some(hop())));
        assert_eq!(whole, body);
    }
    assert!(script.asked.lock().is_empty(), "nobody had to ask the long way");
    let status = peer.status();
    assert_eq!((status.requests, status.errors, status.buffered_bytes), (4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_takes_longer_is_waited_for_and_what_fails_is_told() {
    let Pair { script, peer, shutdown: _shutdown, .. } = pair();
    script.set("slow", Answer::After(Duration::from_secs(7), vec![Bytes::from_static(b"late")]));
    script.set("refused", Answer::Error(FetchError::refused(504, "silent")));
    script.set("large", Answer::Body(vec![Bytes::from(vec![1; 200_000]); 5]));
    for _ in 0..2 {
        assert_eq!(answered(begun(&peer, "slow").await).await.unwrap(), b"late");
        assert_eq!(answered(begun(&peer, "refused").await).await, Err(FetchError::refused(504, "silent")));
        assert_eq!(answered(begun(&peer, "large").await).await.unwrap(), [1; 1_000_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_begun_question_that_nobody_wants_any_longer_is_cancelled() {
    let Pair { script, server, peer, shutdown: _shutdown, .. } = pair();
    script.set("ready", Answer::Body(vec![Bytes::from_static(b"body")]));
    script.set("never", Answer::Never);
    assert!(answered(begun(&peer, "ready").await).await.is_ok());
    drop(begun(&peer, "never").await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.counters().cancelled.value(), 1);
}
