//! Sizes in bytes, as people write and read them.

const SUFFIXES: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
];

/// Reads "1073741824", "1GiB", "1G" (the same), "1.5GB" (powers of 1000); capitals do not matter.
///
/// Errors: a sentence that says what is allowed; zero and sizes of 2^63 and more are refused.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((lower.strip_suffix(suffix)?, *unit)))
        .unwrap_or((&lower, 1));
    let number = number.trim();
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(unit),
        Err(_) => parse_fraction(number, unit),
    };
    match bytes {
        Some(bytes) if bytes > 0 && bytes < 1 << 63 => Ok(bytes),
        _ => Err("not a size in bytes; a number above 0 with KiB, MiB, GiB, KB, MB, GB or nothing"
            .to_string()),
    }
}

fn parse_fraction(number: &str, unit: u64) -> Option<u64> {
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value = number.parse::<f64>().ok().filter(|_| plain)? * unit as f64;
    (value.is_finite() && value < 9e18).then_some(value as u64)
}

/// "3.2 GiB", "512 MiB", "17 bytes".
pub fn format_bytes(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_kinds_of_units() {
        for (text, bytes) in [
            ("1", 1),
            ("2GiB", 2 << 30),
            ("2g", 2 << 30),
            ("512 MiB", 512 << 20),
            ("1.5GB", 1_500_000_000),
            ("16kib", 16 << 10),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1", "x", "1e9", "GiB", "9999999TiB", "1.2.3", "inf"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_fitting_unit() {
        let texts = [17, 512 << 20, (3 << 30) + (1 << 28)].map(format_bytes);
        assert_eq!(texts, ["17 bytes", "512 MiB", "3.2 GiB"]);
    }
}
