//! What is allowed and unwise: secrets that others can guess or read, and a certificate that has expired.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A shorter token can be guessed.
const GOOD_TOKEN: usize = 16;

/// Warns of a token with few characters; `origin` says where it is from.
pub fn of_token(token: &str, origin: &str) -> Option<String> {
    let length = token.len();
    (length < GOOD_TOKEN).then(|| {
        format!(
            "the token of {origin} has {length} characters and can be guessed; make one with: head -c 32 /dev/urandom | base64"
        )
    })
}

/// Warns of a secret file that every user of the machine can read.
pub fn of_secret_file(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| format!("every user of this machine can read {0}: chmod 600 {0}", path.display()))
}

/// Warns of a certificate that has expired at `now`, by its DER.
pub fn of_certificate(path: &Path, der: &[u8], now: SystemTime) -> Option<String> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let until = not_after(der)?;
    (until < seconds).then(|| {
        let days = Duration::from_secs(seconds - until).as_secs() / 86_400;
        format!("the certificate in {} expired {days} days ago: nobody who checks it will connect", path.display())
    })
}

/// The end of a certificate's validity in seconds since 1970, RFC 5280, section 4.1.
fn not_after(der: &[u8]) -> Option<u64> {
    const SEQUENCE: u8 = 0x30;
    let (certificate, _) = inside(der, SEQUENCE)?;
    let (mut body, _) = inside(certificate, SEQUENCE)?;
    if body.first() == Some(&0xa0) {
        // The version.
        (_, body) = inside(body, 0xa0)?;
    }
    // Serial number, algorithm, issuer.
    for tag in [0x02, SEQUENCE, SEQUENCE] {
        (_, body) = inside(body, tag)?;
    }
    let (validity, _) = inside(body, SEQUENCE)?;
    let (_, end) = inside(validity, *validity.first()?)?;
    let tag = *end.first()?;
    let (text, _) = inside(end, tag)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    // UTCTime has two digits of the year, GeneralizedTime four.
    let (year, rest) = match tag {
        0x17 => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        0x18 => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let field = |at: usize| rest.get(2 * at..2 * at + 2)?.parse::<i64>().ok();
    let (month, day, hour, minute, second) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let days = days_since_1970(year, month, day);
    u64::try_from(((days * 24 + hour) * 60 + minute) * 60 + second).ok()
}

/// The content of a DER value with this tag, and what follows it.
fn inside(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f).min(5))?;
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    (found == tag).then(|| rest.split_at_checked(length))?
}

/// Days from 1970-01-01 in the Gregorian calendar; years begin in March, so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_counted_from_1970() {
        for (date, days) in
            [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2000, 3, 1), 11_017), ((2024, 12, 31), 20_088)]
        {
            assert_eq!(days_since_1970(date.0, date.1, date.2), days, "{date:?}");
        }
    }

    #[test]
    fn damaged_certificates_give_no_warning() {
        for bytes in [&b""[..], b"\x30", b"\x30\x84\xff\xff\xff\xff", &[0x30; 99], b"\x30\x02\x30\x00"] {
            assert_eq!(not_after(bytes), None);
        }
    }

    #[test]
    fn short_tokens_and_open_files_are_told() {
        assert!(of_token("secret", "NUMALIGN_TOKEN").is_some_and(|text| text.contains("6 characters")));
        assert_eq!(of_token("0123456789abcdef", "x"), None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "x").unwrap();
        for (mode, warned) in [(0o644, true), (0o640, false), (0o600, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(of_secret_file(&path).is_some(), warned, "{mode:o}");
        }
    }
}
