//! Downloads: resume, digests, retries, redirects, and what is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quarrel_hub::digest::Digest;
use quarrel_hub::fetch::{Fetcher, NetConfig, Request, Want};
use quarrel_hub::{Error, Result};
use tempfile::TempDir;

use crate::support::{Resp, Server, Told, closed, net, noise};

fn part() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.partial");
    (dir, path)
}

fn fetcher() -> Fetcher {
    Fetcher::new(net()).unwrap()
}

fn get(url: &str, to: &Path, body: &[u8], told: &mut Told) -> Result<Digest> {
    let want = Want { digest: Some(Digest::of(body)), size: Some(body.len() as u64) };
    fetcher().download(Request { url, bearer: Some("secret"), accept: None }, to, want, "x", told)
}

fn text(url: &str) -> Result<String> {
    fetcher().text(Request { url, bearer: None, accept: None }, 1000)
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let body = noise(700_000);
    let served = body.clone();
    let server = Server::start(move |req| {
        let resp = Resp::file(req, &served);
        if req.header("range").is_none() { Resp { cut: Some(300_000), ..resp } } else { resp }
    });
    let (_dir, to) = part();
    let mut told = Told::default();
    get(&server.url, &to, &body, &mut told).unwrap();
    assert_eq!(fs::read(&to).unwrap(), body);
    assert_eq!((told.done, told.total), (700_000, Some(700_000)));
    let log = server.log();
    assert_eq!(log.len(), 2);
    assert_eq!((log[1].header("range"), log[1].header("if-range")), (Some("bytes=300000-"), Some("\"v1\"")));
}

#[test]
fn an_earlier_runs_part_is_kept_and_counted() {
    let body = noise(50_000);
    let served = body.clone();
    let server = Server::start(move |req| Resp::file(req, &served));
    let (_dir, to) = part();
    fs::write(&to, &body[..20_000]).unwrap();
    let mut told = Told::default();
    get(&server.url, &to, &body, &mut told).unwrap();
    assert_eq!(fs::read(&to).unwrap(), body);
    assert_eq!(told.done, 50_000);
    assert_eq!(server.log()[0].header("range"), Some("bytes=20000-"));
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let body = noise(50_000);
    let served = body.clone();
    let server = Server::start(move |_| Resp::ok(served.clone()));
    let (_dir, to) = part();
    fs::write(&to, &body[..20_000]).unwrap();
    get(&server.url, &to, &body, &mut Told::default()).unwrap();
    assert_eq!(fs::read(&to).unwrap(), body);
}

#[test]
fn a_stale_part_is_thrown_away_and_fetched_from_the_start() {
    let body = noise(50_000);
    let served = body.clone();
    let server = Server::start(move |req| Resp::file(req, &served));
    for stale in [vec![7; 20_000], vec![7; 50_000], vec![7; 60_000]] {
        let (_dir, to) = part();
        fs::write(&to, &stale).unwrap();
        get(&server.url, &to, &body, &mut Told::default()).unwrap();
        assert_eq!(fs::read(&to).unwrap(), body, "{} stale bytes", stale.len());
    }
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let body = noise(5_000);
    let mut wrong = body.clone();
    wrong[4_000] ^= 1;
    let server = Server::start(move |req| Resp::file(req, &wrong));
    let (_dir, to) = part();
    let e = get(&server.url, &to, &body, &mut Told::default()).unwrap_err();
    let text = e.to_string();
    assert!(matches!(e, Error::Corrupt { .. }), "{text}");
    assert!(text.contains(&Digest::of(&body).to_string()) && text.contains(server.host()), "{text}");
    assert!(!to.exists());
}

#[test]
fn a_wrong_size_is_refused() {
    let body = noise(5_000);
    let longer = noise(6_000);
    let server = Server::start(move |_| Resp::ok(longer.clone()));
    let (_dir, to) = part();
    let e = get(&server.url, &to, &body, &mut Told::default()).unwrap_err().to_string();
    assert!(e.contains("expected 5000 bytes") && e.contains("found 6000 bytes"), "{e}");
    assert_eq!(fs::metadata(&to).map_or(0, |m| m.len()), 0);
}

#[test]
fn statuses_and_their_tries() {
    for (status, tries, part) in [
        (401, 1, "access token (401)"),
        (403, 1, "refused (403)"),
        (404, 1, "no such thing there (404)"),
        (418, 1, "answered 418"),
        (429, 3, "too many requests (429)"),
        (500, 3, "the server failed (500)"),
        (503, 3, "the server failed (503)"),
    ] {
        let server = Server::start(move |_| Resp::status(status));
        let e = text(&format!("{}/a?X-Secret=1", server.url)).unwrap_err().to_string();
        assert!(e.contains(part) && e.contains("/a:") && !e.contains("Secret"), "{e}");
        assert_eq!(server.log().len(), tries, "{status}");
    }
}

#[test]
fn a_passing_failure_is_survived() {
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Resp::status(429).with("retry-after", "0"),
        1 => Resp::status(502),
        _ => Resp::ok("fine"),
    });
    assert_eq!(text(&server.url).unwrap(), "fine");
}

#[test]
fn a_server_that_asks_for_a_long_wait_is_not_waited_for() {
    let server = Server::start(|_| Resp::status(429).with("retry-after", "3600"));
    let e = text(&server.url).unwrap_err().to_string();
    assert!(e.contains("asks to wait 3600 s"), "{e}");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_token_stays_with_its_host() {
    let storage = Server::start(|req| Resp::file(req, b"weights"));
    let elsewhere = storage.url.clone();
    let hub = Server::start(move |req| match req.path.as_str() {
        "/start" => Resp::redirect("/moved"),
        _ => Resp::redirect(&format!("{elsewhere}/file")),
    });
    let (_dir, to) = part();
    get(&format!("{}/start", hub.url), &to, b"weights", &mut Told::default()).unwrap();
    let auth: Vec<_> = hub.log().iter().map(|r| r.header("authorization").map(str::to_string)).collect();
    assert_eq!(auth, [Some("Bearer secret".to_string()), Some("Bearer secret".to_string())]);
    assert_eq!(storage.log()[0].header("authorization"), None);
}

#[test]
fn redirects_end() {
    let server = Server::start(|_| Resp::redirect("/again"));
    assert!(text(&server.url).unwrap_err().to_string().contains("more than 10 redirects"));
    let server = Server::start(|_| Resp::status(302));
    assert!(text(&server.url).unwrap_err().to_string().contains("no usable address"));
}

#[test]
fn no_network_is_said_at_once() {
    let start = Instant::now();
    let e = text(&closed()).unwrap_err().to_string();
    assert!(e.contains("the connection was refused"), "{e}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_silent_server_is_left() {
    let server = Server::start(|_| Resp { silent: true, ..Resp::default() });
    let config = NetConfig { read_timeout: Duration::from_millis(100), tries: 1, ..net() };
    let request = Request { url: &server.url, bearer: None, accept: None };
    let e = Fetcher::new(config).unwrap().text(request, 10).unwrap_err().to_string();
    assert!(e.contains("silent for 0.1 s"), "{e}");
}

#[test]
fn a_server_that_always_cuts_is_given_up() {
    let server = Server::start(|_| Resp { cut: Some(0), ..Resp::ok(noise(100)) });
    let (_dir, to) = part();
    let e = get(&server.url, &to, &noise(100), &mut Told::default()).unwrap_err();
    assert!(matches!(e, Error::Http { .. }), "{e}");
    assert_eq!(server.log().len(), 3);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_clear_line() {
    let server = Server::start(|req| Resp::file(req, &noise(100_000)));
    let (_dir, to) = part();
    std::os::unix::fs::symlink("/dev/full", &to).unwrap(); // every write to it fails for want of space
    let e = get(&server.url, &to, &noise(100_000), &mut Told::default()).unwrap_err();
    let text = e.to_string();
    assert!(matches!(e, Error::DiskFull { .. }), "{text}");
    assert!(text.starts_with("no space left while writing") && text.contains("free some space"), "{text}");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_long_answer_is_cut_short() {
    let server = Server::start(|_| Resp::ok(vec![b'a'; 2000]));
    assert!(text(&server.url).unwrap_err().to_string().contains("longer than 1000 bytes"));
}
