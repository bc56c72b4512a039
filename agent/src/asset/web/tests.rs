//! A web server that is scripted byte by byte, with and without TLS.

use super::*;
use std::sync::Mutex;

use tidegate_shared::digest::Digest;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What was asked, whole.
type Asked = Arc<Mutex<Vec<String>>>;

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    replies: &[(&str, String)],
    asked: &Asked,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let found = replies.iter().find(|(known, _)| *known == path);
    let reply = found.map_or("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", |(_, r)| r);
    asked.lock().unwrap().push(head.to_lowercase());
    stream.write_all(reply.as_bytes()).await.unwrap();
    stream.shutdown().await.ok();
}

/// Serves the replies by path; gives the address, and the certificate if it has TLS.
async fn serve(
    replies: Vec<(&'static str, String)>,
    is_tls: bool,
) -> (String, Asked, Vec<CertificateDer<'static>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let chain = vec![certificate.der().clone()];
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), der.into())
        .unwrap();
    let acceptor = is_tls.then(|| TlsAcceptor::from(Arc::new(config)));
    let told = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match &acceptor {
                None => answer(stream, &replies, &told).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        answer(stream, &replies, &told).await;
                    }
                }
            }
        }
    });
    let scheme = if is_tls { "https" } else { "http" };
    (format!("{scheme}://{address}"), asked, chain)
}

fn part(from: u64, version: Option<&str>) -> Part<'_> {
    Part {
        digest: Digest::ZERO,
        from,
        version,
    }
}

async fn text(opened: Opened) -> (u64, Option<u64>, Option<String>, String) {
    let Opened::Body {
        from,
        size,
        version,
        mut body,
    } = opened
    else {
        panic!("no body: {}", trouble(opened));
    };
    let mut text = String::new();
    while let Some(piece) = body.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    (from, size, version, text)
}

fn trouble(opened: Opened) -> String {
    match opened {
        Opened::Failed(why) => why,
        Opened::Missing => "missing".to_owned(),
        Opened::Body { .. } => "a body".to_owned(),
    }
}

#[tokio::test]
async fn a_whole_file_and_a_part_of_it_come_over_tls() {
    let whole = "HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-length: 5\r\n\r\nhello";
    let rest = "HTTP/1.1 206 Part\r\nlast-modified: then\r\netag: W/\"v1\"\r\n\
                content-range: bytes 2-4/5\r\ncontent-length: 3\r\n\r\nllo";
    let replies = vec![("/a?b=c", whole.to_owned()), ("/rest", rest.to_owned())];
    let (address, asked, roots) = serve(replies, true).await;
    let web = Web { roots };
    let found = text(web.open(&format!("{address}/a?b=c"), part(0, None)).await).await;
    let tag = "\"v1\"".to_owned();
    assert_eq!(found, (0, Some(5), Some(tag.clone()), "hello".to_owned()));
    let found = text(
        web.open(&format!("{address}/rest"), part(2, Some(&tag)))
            .await,
    )
    .await;
    // A weak tag says nothing of bytes; the time does.
    assert_eq!(
        found,
        (2, Some(5), Some("then".to_owned()), "llo".to_owned())
    );
    let asked = asked.lock().unwrap().clone();
    assert!(!asked[0].contains("range") && asked[0].contains("accept-encoding: identity"));
    assert!(asked[1].contains("range: bytes=2-\r\n") && asked[1].contains("if-range: \"v1\"\r\n"));
    // Without the root nothing is fetched.
    let stranger = Web::default().open(&address, part(0, None)).await;
    let why = trouble(stranger);
    assert!(
        why.contains("TLS") || why.contains("root certificates"),
        "{why}"
    );
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    let to =
        |place: &str| format!("HTTP/1.1 302 Go\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
    let replies = vec![
        ("/a", to("b?c")),
        ("/b?c", to("/d")),
        (
            "/d",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
        ),
        ("/loop", to("/loop")),
        ("/out", to("ftp://x/y")),
        (
            "/nowhere",
            "HTTP/1.1 301 Go\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ),
        (
            "/busy",
            "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ),
        (
            "/part",
            "HTTP/1.1 206 P\r\ncontent-range: bytes 9-9/10\r\ncontent-length: 1\r\n\r\nx"
                .to_owned(),
        ),
        (
            "/zipped",
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx".to_owned(),
        ),
    ];
    let (address, asked, _) = serve(replies, false).await;
    let web = Web::default();
    let found = text(web.open(&format!("{address}/a"), part(0, None)).await).await;
    assert_eq!(found.3, "hi");
    asked.lock().unwrap().clear();
    for (path, words) in [
        ("/loop", "redirects more than 5 times"),
        ("/out", "redirects to a ftp:// address"),
        ("/nowhere", "to nowhere"),
        ("/busy", "answered 503"),
        ("/part", "another part"),
        ("/zipped", "content coding"),
        ("/none", "missing"),
    ] {
        let why = trouble(web.open(&format!("{address}{path}"), part(0, None)).await);
        assert!(why.contains(words), "{path}: {why}");
    }
    let loops = asked.lock().unwrap();
    let count = loops.iter().filter(|head| head.contains("/loop")).count();
    assert_eq!(count, 6);
}

#[test]
fn redirects_are_resolved_as_browsers_do() {
    let base = "https://a.example:8443/x/y?z=1";
    for (location, address) in [
        ("http://b.example/c", "http://b.example/c"),
        ("//b.example/c#d", "https://b.example/c"),
        ("/c?u=http://d", "https://a.example:8443/c?u=http://d"),
        ("c", "https://a.example:8443/x/c"),
    ] {
        assert_eq!(resolve(base, location).unwrap(), address);
    }
    assert_eq!(resolve("http://a", "b").unwrap(), "http://a/b");
    assert!(resolve(base, "ftp://b/c").unwrap_err().contains("ftp://"));
}

#[test]
fn ranges_of_answers_are_read() {
    assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
    assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
    for wrong in ["", "bytes */10", "lines 1-2/3", "bytes 5-9/x"] {
        assert_eq!(content_range(wrong), None, "{wrong}");
    }
}
