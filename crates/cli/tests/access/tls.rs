//! TLS: certificates made by `cert`, and which of them are accepted on either side.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// `numalign cert` for `hosts`, in a new folder.
fn certificates(hosts: &[&str]) -> Folder {
    let folder = Folder::new();
    succeed("cert", &folder.run(&words(&[&["cert", "--out", "."], hosts])));
    folder
}

fn file(folder: &Folder, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[test]
fn certificates_are_made_for_their_owner_alone_and_never_replaced() {
    let folder = Folder::new();
    let output = folder.run(&["cert", "--out", "tls/dev", "localhost", "10.0.0.1", "::1"]);
    succeed("cert", &output);
    for (name, mode) in [
        ("ca.pem", 0o644),
        ("ca-key.pem", 0o600),
        ("coordinator.pem", 0o644),
        ("coordinator-key.pem", 0o600),
        ("worker.pem", 0o644),
        ("worker-key.pem", 0o600),
    ] {
        let path = folder.path().join("tls/dev").join(name);
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        // The user's mask may take rights away, not add any.
        assert_eq!(found | mode, mode, "{name}");
        assert!(mode != 0o600 || found == 0o600, "{name}");
        assert!(output.stderr.contains(name), "{name}: {output}");
    }
    let before = folder.contents();
    let again = folder.run(&["cert", "--out", "tls/dev", "localhost"]);
    check("again", &again, FAILED, &["error:", "tls/dev/ca.pem", "there already", "hint:", "--out"]);
    assert!(folder.contents() == before, "not a byte changed");
    // One file that is in the way is enough, and nothing is left beside it.
    folder.write("some/worker-key.pem", "mine");
    check("one", &folder.run(&["cert", "--out", "some", "localhost"]), FAILED, &["worker-key.pem", "there already"]);
    assert_eq!(std::fs::read_dir(folder.path().join("some")).unwrap().count(), 1);
    for host in ["http://localhost", "localhost:7400", "a b", ""] {
        check(host, &folder.run(&["cert", "--out", "x", host]), USAGE, &["error:", "host name", "hint:"]);
    }
    check("no host", &folder.run(&["cert", "--out", "x"]), USAGE, &["HOST"]);
    folder.write("file", "");
    check("a file", &folder.run(&["cert", "--out", "file", "localhost"]), FAILED, &["error:", "file"]);
    check("a file above", &folder.run(&["cert", "--out", "file/x", "localhost"]), FAILED, &["error:", "file/x"]);
    assert!(!folder.path().join("x").exists());
}

#[test]
fn tls_keeps_out_a_client_that_cannot_verify_the_coordinator() {
    let (certs, others) = (certificates(&["localhost", "127.0.0.1"]), certificates(&["localhost", "127.0.0.1"]));
    let folder = Folder::new();
    let (cert, key) = (file(&certs, "coordinator.pem"), file(&certs, "coordinator-key.pem"));
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let mut coordinator = Listening::start(&folder, &tls, &[("NUMALIGN_TOKEN", SECRET)]);
    assert!(coordinator.child.stderr().contains("https://HOST"), "{}", coordinator.child.stderr());
    let token = [("NUMALIGN_TOKEN", SECRET)];
    let secure = coordinator.url("https", "127.0.0.1");

    let plain = worker(&folder, &coordinator.plain(), &[], &token);
    check("a plain client", &plain, FAILED, &["error:", "takes TLS connections only", "hint:", "https://"]);
    let ca = file(&others, "ca.pem");
    let wrong = worker(&folder, &secure, &["--tls-ca", &ca], &token);
    check("another CA", &wrong, FAILED, &["error:", "not signed by that CA", &ca, "hint:", "--tls-ca"]);
    let ca = file(&certs, "ca.pem");
    let none = worker(&folder, &secure, &["--tls-ca", &ca], &[]);
    check("TLS but no token", &none, FAILED, &["error:", "no join token"]);
    let scheme = worker(&folder, &coordinator.plain(), &["--tls-ca", &ca], &token);
    check("http:// with a CA", &scheme, USAGE, &["error:", "https://"]);
    check("https:// without a CA", &worker(&folder, &secure, &[], &token), USAGE, &["error:", "--tls-ca", "hint:"]);

    let by_name = coordinator.url("https", "localhost");
    let status = folder.run_env(&["status", "--coordinator", &by_name, "--tls-ca", &ca], &token);
    succeed("status", &status);
    assert!(status.stdout.contains("waiting"), "{status}");
    succeed("the right CA", &worker(&folder, &by_name, &["--tls-ca", &ca], &token));
    let output = coordinator.ends_unharmed(&folder);
    for said in ["takes TLS connections only", "TLS handshake failed", "UnknownCA", "no join token"] {
        assert!(output.stderr.contains(said), "{said}: {output}");
    }
}

/// A coordinator's certificate for 127.0.0.1 that expired in 2001, its key, and its CA.
fn expired(folder: &Folder) -> [String; 3] {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    leaf.not_before = rcgen::date_time_ymd(2000, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let leaf_pem = leaf.signed_by(&key, &issuer).unwrap().pem();
    [("cert.pem", leaf_pem), ("key.pem", key.serialize_pem()), ("ca.pem", ca_pem)]
        .map(|(name, text)| folder.write(name, text).display().to_string())
}

#[test]
fn an_expired_certificate_and_one_for_another_host_are_told_apart() {
    let elsewhere = certificates(&["elsewhere.test"]);
    let old = Folder::new();
    let [cert, key, ca] = expired(&old);
    let named = ["coordinator.pem", "coordinator-key.pem", "ca.pem"].map(|name| file(&elsewhere, name));
    for ([cert, key, ca], said) in
        [([cert, key, ca], "it has expired"), (named, "it is not for 127.0.0.1 but for elsewhere.test")]
    {
        let folder = Folder::new();
        let coordinator = Listening::start(&folder, &["--tls-cert", &cert, "--tls-key", &key], &[]);
        let output = worker(&folder, &coordinator.url("https", "127.0.0.1"), &["--tls-ca", &ca], &[]);
        check(said, &output, FAILED, &["error:", "coordinator's certificate", said, "hint:"]);
    }
}

#[test]
fn tls_on_a_plain_port_is_told_on_both_sides() {
    let certs = certificates(&["127.0.0.1"]);
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[]);
    let ca = file(&certs, "ca.pem");
    let wait = [("NUMALIGN_COORDINATOR_WAIT", "700ms")];
    let output = worker(&folder, &coordinator.url("https", "127.0.0.1"), &["--tls-ca", &ca], &wait);
    check("TLS to a plain port", &output, FAILED, &["error:", "does not speak TLS", "http://", "hint:"]);
    succeed("the worker", &worker(&folder, &coordinator.plain(), &[], &[]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("it speaks TLS, this coordinator does not"), "{output}");
}

#[test]
fn mutual_tls_keeps_out_a_client_without_a_certificate_of_the_ca() {
    let (certs, others) = (certificates(&["127.0.0.1"]), certificates(&["127.0.0.1"]));
    let folder = Folder::new();
    let [cert, key, ca] = ["coordinator.pem", "coordinator-key.pem", "ca.pem"].map(|name| file(&certs, name));
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    let mut coordinator = Listening::start(&folder, &tls, &[]);
    let url = coordinator.url("https", "127.0.0.1");
    // The verdict on a client's certificate comes late; a lost one is asked for again, not for long.
    let none = worker(&folder, &url, &["--tls-ca", &ca], &[]);
    check("no certificate", &none, FAILED, &["error:", "demands a client certificate", "hint:", "--tls-cert"]);
    let [cert, key] = ["worker.pem", "worker-key.pem"].map(|name| file(&others, name));
    let other = worker(&folder, &url, &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key], &[]);
    check("another CA's", &other, FAILED, &["error:", "does not accept this side's certificate", "hint:"]);
    let [cert, key] = ["worker.pem", "worker-key.pem"].map(|name| file(&certs, name));
    succeed("the CA's", &worker(&folder, &url, &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key], &[]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("TLS handshake failed"), "{output}");
}

#[test]
fn files_that_do_not_fit_together_are_refused_before_anything_starts() {
    let (certs, others) = (certificates(&["127.0.0.1"]), certificates(&["127.0.0.1"]));
    let folder = Folder::new();
    let [cert, key, ca] = ["coordinator.pem", "coordinator-key.pem", "ca.pem"].map(|name| file(&certs, name));
    let foreign = file(&others, "coordinator-key.pem");
    let listen = ["coordinator", "nn", "--listen", ANY_PORT];
    let join = ["worker", "--coordinator", "https://127.0.0.1:9"];
    let cases: &[(&[&str], &[&str], &str)] = &[
        (&listen, &["--tls-cert", &cert], "--tls-key"),
        (&listen, &["--tls-key", &key], "--tls-cert"),
        (&listen, &["--tls-ca", &ca], "--tls-cert"),
        (&listen, &["--tls-cert", &cert, "--tls-key", &foreign], "not the key of the certificate"),
        (&listen, &["--tls-cert", &key, "--tls-key", &key], "no certificate"),
        (&listen, &["--tls-cert", "none.pem", "--tls-key", &key], "none.pem"),
        (&join, &["--tls-cert", &cert, "--tls-key", &key], "--tls-ca"),
        (&join, &["--tls-ca", &key], "no certificate"),
        (&join, &["--tls-ca", "none.pem"], "none.pem"),
        (&join, &["--tls-ca", &ca, "--tls-cert", &cert], "--tls-key"),
    ];
    for (command, args, said) in cases {
        check(said, &folder.run(&words(&[command, args])), USAGE, &["error:", said]);
    }
    assert!(!folder.path().join("chk").exists(), "nothing started");
}
