//! `numalign cert`: a CA of one's own, a certificate for the coordinator and one for the workers.
//! For development and closed networks; a site with a CA uses that one's certificates.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::ArgMatches;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::args::text;
use crate::console::note;
use crate::error::CliError;

const DAY: Duration = Duration::from_secs(86_400);

/// A file to write; keys are for their owner alone.
struct Piece {
    name: &'static str,
    text: String,
    secret: bool,
}

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let folder = PathBuf::from(text(matches, "out").unwrap_or_default());
    let days = *matches.get_one::<u64>("days").unwrap_or(&365);
    let mut hosts = Vec::new();
    for host in matches.get_many::<String>("host").unwrap_or_default() {
        hosts.push(checked(host)?);
    }
    let pieces = make(&hosts, days).map_err(|error| CliError::new(format!("cannot make the certificates: {error}")))?;
    write(&folder, &pieces)?;
    let at = |name: &str| folder.join(name).display().to_string();
    note!(
        "wrote a CA, a coordinator's certificate for {} and a worker's, valid for {days} days\n  \
         coordinator: --tls-cert {} --tls-key {} (and --tls-ca {} to demand the workers' certificate)\n  \
         worker:      --tls-ca {} (and --tls-cert {} --tls-key {} where it is demanded)\n  \
         keep {} secret: anybody who has it can make certificates that this run trusts",
        hosts.join(", "),
        at("coordinator.pem"),
        at("coordinator-key.pem"),
        at("ca.pem"),
        at("ca.pem"),
        at("worker.pem"),
        at("worker-key.pem"),
        at("ca-key.pem"),
    );
    Ok(())
}

/// A host name or an IP address, without scheme or port.
fn checked(host: &str) -> Result<String, CliError> {
    let name = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-*".contains(c)) && !host.is_empty();
    if name || host.parse::<IpAddr>().is_ok() {
        return Ok(host.to_owned());
    }
    Err(CliError::usage(format!("`{host}` is neither a host name nor an IP address"))
        .with_hint("give what stands between https:// and the port in the workers' --coordinator"))
}

fn make(hosts: &[String], days: u64) -> Result<Vec<Piece>, rcgen::Error> {
    let now = SystemTime::now();
    let valid = |params: &mut CertificateParams| {
        // Another machine's clock may be behind.
        params.not_before = (now - DAY).into();
        params.not_after = (now + DAY * days as u32).into();
    };
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    // Two CAs of one name would make a wrong one look like a broken signature.
    let number: String = ca_key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
    ca.distinguished_name.push(DnType::CommonName, format!("numalign development CA {number}"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut ca);
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::from_params(&ca, &ca_key);

    let leaf = |name: &str, hosts: &[String], purposes: Vec<ExtendedKeyUsagePurpose>| {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        params.use_authority_key_identifier_extension = true;
        valid(&mut params);
        let certificate = params.signed_by(&key, &issuer)?;
        Ok::<_, rcgen::Error>((certificate.pem(), key.serialize_pem()))
    };
    let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (coordinator, coordinator_key) = leaf("numalign coordinator", hosts, both)?;
    let client = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (worker, worker_key) = leaf("numalign worker", &["numalign-worker".to_owned()], client)?;

    let open = |name, text| Piece { name, text, secret: false };
    let secret = |name, text| Piece { name, text, secret: true };
    Ok(vec![
        open("ca.pem", ca_certificate.pem()),
        secret("ca-key.pem", ca_key.serialize_pem()),
        open("coordinator.pem", coordinator),
        secret("coordinator-key.pem", coordinator_key),
        open("worker.pem", worker),
        secret("worker-key.pem", worker_key),
    ])
}

/// Writes all of them, or none if one is there already.
fn write(folder: &Path, pieces: &[Piece]) -> Result<(), CliError> {
    let failed = |path: &Path, error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            CliError::new(format!("{} is there already; nothing was written", path.display()))
                .with_hint("choose another --out, or remove the old files yourself: what uses them would stop working")
        }
        _ => CliError::new(format!("cannot write {}: {error}", path.display())),
    };
    // Others could put their own keys in the place of these.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => CliError::new(format!("{} is not a folder", folder.display())),
        _ => failed(folder, error),
    })?;
    for piece in pieces {
        let path = folder.join(piece.name);
        if path.symlink_metadata().is_ok() {
            return Err(failed(&path, std::io::ErrorKind::AlreadyExists.into()));
        }
    }
    let mut written = Vec::new();
    for piece in pieces {
        let path = folder.join(piece.name);
        let mode = if piece.secret { 0o600 } else { 0o644 };
        let result = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(piece.text.as_bytes()).and_then(|()| file.sync_all()));
        if !matches!(&result, Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists) {
            written.push(path.clone());
        }
        if let Err(error) = result {
            for path in &written {
                // Half a set is useless; the error that counts is the one above.
                let _ = std::fs::remove_file(path);
            }
            return Err(failed(&path, error));
        }
    }
    Ok(())
}
