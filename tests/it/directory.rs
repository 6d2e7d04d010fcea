//! A directory as a source: what it gives, and what it keeps to itself.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bytes::Bytes;
use groupcache_proxy::fields::Fields;
use groupcache_proxy::origin::{Directory, DirectorySettings};
use groupcache_proxy::source::{Ask, FetchError, Fetched, Method, Source};

fn ask(target: &[u8], fields: &[(&str, &str)]) -> Ask {
    Ask {
        group: "test".into(),
        key: Bytes::new(),
        target: Bytes::copy_from_slice(target),
        host: None,
        method: Method::Get,
        fields: Fields::from_pairs(fields.iter().copied()).unwrap(),
    }
}

async fn read(fetched: &mut Fetched) -> Result<Vec<u8>, FetchError> {
    let mut all = Vec::new();
    while let Some(chunk) = fetched.body.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// `status body`, with the body as text.
async fn answer(directory: &Directory, target: &[u8], fields: &[(&str, &str)]) -> String {
    let mut fetched = directory.fetch(&ask(target, fields)).await.unwrap();
    let body = read(&mut fetched).await.unwrap();
    assert!(fetched.content_length.is_none_or(|length| length == body.len() as u64));
    format!("{} {}", fetched.status, String::from_utf8_lossy(&body).trim_end())
}

fn directory(root: &Path) -> Directory {
    Directory::new(DirectorySettings { root: root.to_owned(), cache_control: None }).unwrap()
}

#[tokio::test]
async fn nothing_outside_the_folder_and_nothing_hidden_can_be_had() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    std::fs::create_dir_all(root.join("sub/.git")).unwrap();
    std::fs::create_dir(root.join("listed")).unwrap();
    for (name, content) in [
        ("../secret", "secret"),
        ("../root-twin", "secret"),
        ("a.txt", "a"),
        ("ä +.txt", "umlaut"),
        ("index.html", "index"),
        ("sub/index.html", "sub index"),
        ("sub/b", "b"),
        ("sub/.git/config", "secret"),
        (".hidden", "secret"),
        ("listed/c", "c"),
    ] {
        std::fs::write(root.join(name), content).unwrap();
    }
    symlink(outer.path().join("secret"), root.join("way-out")).unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink("../root-twin", root.join("twin")).unwrap();
    symlink("sub/.git", root.join("visible")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("a.txt", root.join("same")).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let directory = directory(&root);
    let long = format!("/{}", "x".repeat(5000));
    for (target, expected) in [
        ("/a.txt", "200 a"),
        ("/a.txt?w=1", "200 a"),
        ("/%61.txt", "200 a"),
        ("/%C3%A4%20+.txt", "200 umlaut"),
        ("/ä%20%2B.txt", "200 umlaut"),
        ("/", "200 index"),
        ("/sub/", "200 sub index"),
        ("/sub/b", "200 b"),
        ("/same", "200 a"),
        ("/sub", "301 moved"),
        ("/listed", "404 not found"),
        ("/listed/", "404 not found"),
        ("/absent", "404 not found"),
        ("/a.txt/", "404 not found"),
        ("/a.txt/b", "404 not found"),
        ("/../secret", "404 not found"),
        ("/%2e%2e/secret", "404 not found"),
        ("/sub/../a.txt", "404 not found"),
        ("/sub/%2e%2e/%2e%2e/secret", "404 not found"),
        ("/..%2fsecret", "404 not found"),
        ("/sub%2Fb", "404 not found"),
        ("/.%00/../a.txt", "404 not found"),
        ("/a.txt%00", "404 not found"),
        ("/./a.txt", "404 not found"),
        ("//a.txt", "404 not found"),
        ("/sub//b", "404 not found"),
        ("/.hidden", "404 not found"),
        ("/%2ehidden", "404 not found"),
        ("/sub/.git/config", "404 not found"),
        ("/visible/config", "404 not found"),
        ("/way-out", "404 not found"),
        ("/up/secret", "404 not found"),
        ("/twin", "404 not found"),
        ("/loop", "404 not found"),
        ("/socket", "404 not found"),
        ("/a%", "404 not found"),
        ("/a%2", "404 not found"),
        ("/a%zz", "404 not found"),
        ("a.txt", "404 not found"),
        ("", "404 not found"),
        (&long, "404 not found"),
    ] {
        assert_eq!(answer(&directory, target.as_bytes(), &[]).await, expected, "{target}");
    }
    let moved = directory.fetch(&ask(b"/sub?x=1", &[])).await.unwrap();
    assert_eq!(moved.fields.get_str("location"), Some("./sub/?x=1"));
}

#[tokio::test]
async fn conditions_and_ranges_are_answered_as_rfc_9110_says() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), "0123456789").unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    let directory = directory(folder.path());
    let validators = directory.validators(b"/a.txt").await.unwrap().unwrap();
    let fetched = directory.fetch(&ask(b"/a.txt", &[])).await.unwrap();
    assert_eq!(fetched.fields.get_str("etag"), Some(validators.etag.as_str()));
    assert_eq!(fetched.fields.get_str("last-modified"), Some(validators.last_modified.as_str()));
    assert_eq!(fetched.fields.get_str("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(fetched.fields.get_str("accept-ranges"), Some("bytes"));
    assert!(!fetched.fields.contains("cache-control"));
    assert_eq!(directory.validators(b"/absent").await, Ok(None));

    let (tag, date) = (validators.etag.as_str(), validators.last_modified.as_str());
    let (weak, list) = (format!("W/{tag}"), format!("\"x\", {tag}"));
    let old = "Thu, 01 Jan 1970 00:00:10 GMT";
    for (fields, expected) in [
        (&[("If-None-Match", tag)][..], "304 "),
        (&[("If-None-Match", &weak)], "304 "),
        (&[("If-None-Match", &list)], "304 "),
        (&[("If-None-Match", "\"x\""), ("If-None-Match", tag)], "304 "),
        (&[("If-None-Match", "*")], "304 "),
        (&[("If-None-Match", "\"x\"")], "200 0123456789"),
        (&[("If-None-Match", "\"x\""), ("If-Modified-Since", date)], "200 0123456789"),
        (&[("If-Modified-Since", date)], "304 "),
        (&[("If-Modified-Since", old)], "200 0123456789"),
        (&[("If-Modified-Since", "yesterday")], "200 0123456789"),
        (&[("Range", "bytes=0-0")], "206 0"),
        (&[("Range", "bytes=2-4")], "206 234"),
        (&[("Range", "bytes=8-")], "206 89"),
        (&[("Range", "bytes=8-99999999999999999999")], "206 89"),
        (&[("Range", "bytes=-3")], "206 789"),
        (&[("Range", "bytes=-30")], "206 0123456789"),
        (&[("Range", "bytes=10-")], "416 range not satisfiable"),
        (&[("Range", "bytes=99999999999999999999-")], "416 range not satisfiable"),
        (&[("Range", "bytes=-0")], "416 range not satisfiable"),
        (&[("Range", "bytes=5-2")], "200 0123456789"),
        (&[("Range", "bytes=0-1,3-4")], "200 0123456789"),
        (&[("Range", "bytes=-")], "200 0123456789"),
        (&[("Range", "bytes=+1-2")], "200 0123456789"),
        (&[("Range", "lines=1-2")], "200 0123456789"),
        (&[("Range", "bytes=2-4"), ("If-Range", tag)], "206 234"),
        (&[("Range", "bytes=2-4"), ("If-Range", date)], "206 234"),
        (&[("Range", "bytes=2-4"), ("If-Range", &weak)], "200 0123456789"),
        (&[("Range", "bytes=2-4"), ("If-Range", "\"x\"")], "200 0123456789"),
        (&[("Range", "bytes=2-4"), ("If-None-Match", tag)], "304 "),
    ] {
        assert_eq!(answer(&directory, b"/a.txt", fields).await, expected, "{fields:?}");
    }
    let part = directory.fetch(&ask(b"/a.txt", &[("Range", "bytes=2-4")])).await.unwrap();
    assert_eq!(part.fields.get_str("content-range"), Some("bytes 2-4/10"));
    let beyond = directory.fetch(&ask(b"/a.txt", &[("Range", "bytes=20-")])).await.unwrap();
    assert_eq!(beyond.fields.get_str("content-range"), Some("bytes */10"));
    assert_eq!(answer(&directory, b"/empty", &[]).await, "200 ");
    assert_eq!(answer(&directory, b"/empty", &[("Range", "bytes=0-")]).await, "416 range not satisfiable");
}

#[tokio::test]
async fn a_file_written_in_place_breaks_the_transfer_and_a_replaced_one_is_read_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (path, new) = (folder.path().join("a"), folder.path().join("new"));
    let directory = directory(folder.path());
    std::fs::write(&path, vec![b'1'; 200_000]).unwrap();
    let mut fetched = directory.fetch(&ask(b"/a", &[])).await.unwrap();
    fetched.body.chunk().await.unwrap().unwrap();
    std::fs::write(&new, vec![b'2'; 200_000]).unwrap();
    std::fs::rename(&new, &path).unwrap();
    let rest = read(&mut fetched).await.unwrap();
    assert!(rest.len() == 200_000 - 65_536 && rest.iter().all(|&byte| byte == b'1'));

    let mut fetched = directory.fetch(&ask(b"/a", &[])).await.unwrap();
    fetched.body.chunk().await.unwrap().unwrap();
    std::fs::write(&path, vec![b'3'; 200_000]).unwrap();
    let times = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    std::fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
    assert!(matches!(read(&mut fetched).await, Err(FetchError::Broken(_))), "same length, other time");
}

#[tokio::test]
async fn types_follow_names_and_the_configured_freshness_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let settings = DirectorySettings { root: folder.path().to_owned(), cache_control: Some("max-age=60".to_owned()) };
    let directory = Directory::new(settings).unwrap();
    for (name, expected) in [
        ("a.html", "text/html; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.svg", "image/svg+xml"),
        ("a.JPG", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("a.json", "application/json"),
        ("noext", "application/octet-stream"),
    ] {
        std::fs::write(folder.path().join(name), "x").unwrap();
        let fetched = directory.fetch(&ask(format!("/{name}").as_bytes(), &[])).await.unwrap();
        assert_eq!(fetched.fields.get_str("content-type"), Some(expected), "{name}");
        assert_eq!(fetched.fields.get_str("cache-control"), Some("max-age=60"));
    }
}

#[tokio::test]
async fn what_may_not_be_read_is_not_there_and_a_missing_folder_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("private");
    std::fs::write(&path, "secret").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let answered = answer(&directory(folder.path()), b"/private", &[]).await;
    // Root may read everything.
    let root = std::fs::File::open(&path).is_ok();
    assert_eq!(answered, if root { "200 secret" } else { "404 not found" });
    for wrong in [folder.path().join("absent"), path] {
        assert!(Directory::new(DirectorySettings { root: wrong, cache_control: None }).is_err());
    }
}
