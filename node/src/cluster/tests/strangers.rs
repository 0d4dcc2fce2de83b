//! Who is no member gets nothing; what a member sends is read as a stranger's.

use super::*;
use crate::cluster::contact::connect;
use crate::cluster::keys::{self, Authority, PrivateKey};
use crate::cluster::link::LinkError;
use crate::cluster::tls::{BETWEEN_MEMBERS, JOINING};
use crate::cluster::wire::message::{MAX_MESSAGE, Purpose, Reply, Request};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Believes everything: a stranger that only wants to see how far it gets.
#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Err(Error::General("no TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What a stranger that shows `certificate` reads after its handshake, having sent a hello.
async fn stranger(address: SocketAddr, protocol: &[u8], shown: Option<(&PrivateKey, Vec<u8>)>) -> LinkError {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((key, certificate)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
            builder.with_client_auth_cert(vec![CertificateDer::from(certificate)], key).unwrap()
        }
    };
    config.alpn_protocols = if protocol.is_empty() { Vec::new() } else { vec![protocol.to_vec()] };
    let socket = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = match connector.connect(ServerName::try_from("x.skein").unwrap(), socket).await {
        Ok(stream) => stream,
        Err(error) => return LinkError::of(error),
    };
    // By TLS 1.3 the server looks at the client's certificate when the client is done already.
    let _ = stream.write_all(&[8, 0, 0, 0, 1, 0, 3, b'1', b'.', b'0', 7, 0]).await;
    let mut read = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("it is closed");
    assert_eq!(read, b"", "a stranger was told something");
    LinkError::of(ended.expect_err("the handshake failed"))
}

fn is_alert(error: &LinkError, alert: AlertDescription) -> bool {
    matches!(error, LinkError::Tls(text) if *text == Error::AlertReceived(alert).to_string())
}

#[test]
fn a_host_without_a_certificate_of_this_cluster_gets_nothing() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let at = address(&alpha);
        let error = stranger(at, BETWEEN_MEMBERS, None).await;
        assert!(is_alert(&error, AlertDescription::CertificateRequired), "{error:?}");
        let error = stranger(at, b"", None).await;
        assert!(is_alert(&error, AlertDescription::CertificateRequired), "{error:?}");
        // No invitation is open.
        for protocol in [JOINING, b"http/1.1"] {
            let error = stranger(at, protocol, None).await;
            assert!(matches!(error, LinkError::NotServed), "{error:?}");
        }
        // Certificates of another cluster, and one that says of itself that it is this one's.
        let (other, key) = (Authority::generate().unwrap(), PrivateKey::generate().unwrap());
        let error = stranger(at, BETWEEN_MEMBERS, Some((&key, other.issue(key.public()).unwrap()))).await;
        assert!(matches!(error, LinkError::OtherCluster), "{error:?}");
        let forged = {
            let mut params = rcgen::CertificateParams::new(vec![format!("{}.skein", key.id())]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let name = format!("skein {}", alpha.current().roster().cluster);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let issuer = rcgen::Issuer::new(params.clone(), &key);
            params.signed_by(&key, &issuer).unwrap().der().to_vec()
        };
        let error = stranger(at, BETWEEN_MEMBERS, Some((&key, forged))).await;
        assert!(matches!(error, LinkError::Tls(_)), "{error:?}");
    });
}

#[test]
fn a_host_of_another_cluster_is_not_believed_either() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let other = world.first("other", "elsewhere").await;
        // It has the address of a member.
        let mut astray = member(&alpha);
        astray.addresses = vec![address(&other)];
        let error = connect(&alpha.current(), &astray, Purpose::Control).await.unwrap_err();
        assert!(matches!(error, LinkError::OtherCluster), "{error:?}");
        // A member that is not the one that is meant.
        let beta = world.joined("beta", &alpha).await;
        let mut astray = member(&alpha);
        astray.addresses = vec![address(&beta)];
        let error = connect(&alpha.current(), &astray, Purpose::Control).await.unwrap_err();
        assert!(matches!(error, LinkError::OtherHost { .. }), "{error:?}");
    });
}

#[test]
fn what_is_not_tls_1_3_gets_no_word() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        // TLS 1.2: random numbers, one cipher suite, no compression, the curve and signature that it would need.
        let mut old = vec![3, 3];
        old.extend_from_slice(&[7; 32]);
        old.extend_from_slice(&[0, 0, 2, 0xc0, 0x2b, 1, 0]);
        let extensions = [&[0, 10, 0, 4, 0, 2, 0, 29][..], &[0, 13, 0, 4, 0, 2, 4, 3], &[0, 11, 0, 2, 1, 0]].concat();
        old.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        old.extend_from_slice(&extensions);
        let hello = [&[1, 0][..], &(old.len() as u16).to_be_bytes(), &old].concat();
        let tls_1_2 = [&[22, 3, 1][..], &(hello.len() as u16).to_be_bytes(), &hello].concat();
        let protocol_version = [21, 3, 3, 0, 2, 2, 70];
        let huge = [22, 3, 1, 255, 255, 1, 255, 255, 255];
        let cases: [(&[u8], Option<&[u8]>); 5] = [
            (&tls_1_2, Some(&protocol_version)),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
            (b"SSH-2.0-OpenSSH_9.2\r\n", None),
            (&huge, None),
            (&[0; 64], None),
        ];
        for (sent, expected) in cases {
            let mut socket = TcpStream::connect(address(&alpha)).await.unwrap();
            socket.write_all(sent).await.unwrap();
            let mut answer = Vec::new();
            let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("it is closed");
            let _ = read;
            // An alert at most: a record of two bytes.
            assert!(answer.is_empty() || (answer.len() == 7 && answer[0] == 21), "{sent:?}: {answer:?}");
            if let Some(expected) = expected {
                assert_eq!(answer, expected);
            }
        }
        assert!(world.joined("beta", &alpha).await.current().roster().members.len() == 2, "it goes on");
    });
}

#[test]
fn strangers_who_say_nothing_keep_nobody_out() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
            silent.push(socket.connect(address(&alpha)).await.unwrap());
        }
        connect(&beta.current(), &member(&alpha), Purpose::Control).await.unwrap();
        // Those of one address that are too many are closed at once.
        let mut last = silent.pop().unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(4), last.read(&mut [0])).await.expect("closed at once");
        assert!(matches!(ended, Ok(0) | Err(_)));
    });
}

#[test]
fn what_a_member_sends_is_bounded_and_checked() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let refusal = |bytes: Vec<u8>| {
            let (alpha, beta) = (member(&alpha), beta.current());
            async move {
                let (mut link, _, _) = connect(&beta, &alpha, Purpose::Control).await.unwrap();
                link.send_raw(&bytes).await;
                match link.receive::<Reply>(MAX_MESSAGE, PATIENCE).await.unwrap().expect("a refusal") {
                    Reply::Refused(why) => why,
                    other => panic!("{other:?}"),
                }
            }
        };
        assert!(refusal(u32::MAX.to_le_bytes().to_vec()).await.contains("4294967295 bytes"));
        assert!(refusal(vec![3, 0, 0, 0, 2, 250, 250]).await.contains("cannot be read"));
        assert!(refusal(vec![2, 0, 0, 0, 77, 0]).await.contains("version 77"));
        assert!(refusal(vec![3, 0, 0, 0, 2, 0, 9]).await.contains("after its end"));
        assert!(refusal(vec![0, 0, 0, 0]).await.contains("without a version"));
        // A roster that a member has made itself, and an old one.
        let (mut link, _, _) = connect(&beta.current(), &member(&alpha), Purpose::Control).await.unwrap();
        let mut roster = alpha.current().roster().as_ref().clone();
        roster.serial += 100;
        let forged = Authority::new(PrivateKey::generate().unwrap()).seal(&roster);
        let Reply::Refused(why) = link.ask(&Request::Update(forged)).await.unwrap() else { panic!("it was taken") };
        assert!(why.contains("not signed by this cluster's authority"), "{why}");
        let before = alpha.current().roster().serial;
        let old = alpha.current().signed_roster();
        alpha.serve(ClusterRequest::SetCpuLevel("x86-64-v2".parse().unwrap())).await.unwrap();
        assert_eq!(link.ask::<_, Reply>(&Request::Update(old)).await.unwrap(), Reply::Done);
        assert_eq!(alpha.current().roster().serial, before + 1);
    });
}

#[test]
fn no_session_is_resumed() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        for _ in 0..3 {
            let (mut link, _, _) = connect(&beta.current(), &member(&alpha), Purpose::Control).await.unwrap();
            assert_eq!(link.ask::<_, Reply>(&Request::Ping).await.unwrap(), Reply::Done);
            let session = link.stream().get_ref().1;
            assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
            assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            assert_eq!(link.peer(), keys::id_of(&keys::public_key(&session.peer_certificates().unwrap()[0]).unwrap()));
        }
    });
}
