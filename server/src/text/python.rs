//! Where chat templates expect Python: JSON, floats and dates as Python writes them.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// JSON deeper than this is refused before it is rendered.
pub const DEPTH_MAX: usize = 256;

const SECONDS_PER_DAY: i64 = 24 * 60 * 60;
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `json.dumps(value, ensure_ascii=False)`: ", " and ": ", keys in their order, no HTML escapes.
/// This is what transformers gives chat templates for Jinja's own `tojson`.
pub fn to_json(value: &Value) -> Result<String, Error> {
    let mut json = String::new();
    append_json(&mut json, value, DEPTH_MAX)?;
    Ok(json)
}

/// `repr(number)`: the shortest digits that give the number back, scientific from 1e16 on and
/// below 1e-4.
pub fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes a number");
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// `datetime.strftime(format)` in UTC.
///
/// Errors: a directive that is not one of YmdHMSyjBbAaIpfFTDZz and %, also with a `-` between.
pub fn strftime(time: SystemTime, format: &str) -> Result<String, Error> {
    let date = Date::of(time);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let directive = characters.next();
        let (unpadded, directive) = match directive {
            Some('-') => (true, characters.next()),
            other => (false, other),
        };
        let field = directive.and_then(|d| date.field(d)).ok_or_else(|| {
            let message = format!("strftime_now does not know the format {format:?}");
            Error::new(ErrorKind::InvalidOperation, message)
        })?;
        let stripped = field.trim_start_matches('0');
        let all_zero = stripped.is_empty();
        text.push_str(match (unpadded, all_zero) {
            (true, true) => "0",
            (true, false) => stripped,
            (false, _) => &field,
        });
    }
    Ok(text)
}

fn append_json(json: &mut String, value: &Value, depth_left: usize) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::new(ErrorKind::BadSerialization, why));
    if depth_left == 0 {
        return refuse(format!("deeper than {DEPTH_MAX} levels"));
    }
    match value.kind() {
        ValueKind::None => json.push_str("null"),
        ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => {
            write!(json, "{value}").expect("a String takes everything");
        }
        ValueKind::Number => json.push_str(&float_repr(f64::try_from(value.clone())?)),
        ValueKind::String => append_json_string(json, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            json.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                json.push_str(if index == 0 { "" } else { ", " });
                append_json(json, &item, depth_left - 1)?;
            }
            json.push(']');
        }
        ValueKind::Map => {
            json.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                json.push_str(if index == 0 { "" } else { ", " });
                let name = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                append_json_string(json, &name);
                json.push_str(": ");
                append_json(json, &value.get_item(&key)?, depth_left - 1)?;
            }
            json.push('}');
        }
        other => return refuse(format!("a value of type {other} is not JSON")),
    }
    Ok(())
}

fn append_json_string(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            '\0'..='\u{1f}' => {
                write!(json, "\\u{:04x}", character as u32).expect("a String takes everything");
            }
            other => json.push(other),
        }
    }
    json.push('"');
}

/// A moment in UTC, in calendar fields.
struct Date {
    year: i64,
    month: i64,
    day: i64,
    day_of_year: i64,
    /// 0 is Monday.
    weekday: i64,
    second_of_day: i64,
    microsecond: u32,
}

impl Date {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs() as i64;
        let days = seconds / SECONDS_PER_DAY;
        let (year, month, day) = civil_from_days(days);
        Self {
            year,
            month,
            day,
            day_of_year: days - days_before_year(year) + 1,
            // The first of January 1970 was a Thursday.
            weekday: (days + 3) % 7,
            second_of_day: seconds % SECONDS_PER_DAY,
            microsecond: since.subsec_micros(),
        }
    }

    fn field(&self, directive: char) -> Option<String> {
        let hour = self.second_of_day / 3600;
        let minute = self.second_of_day / 60 % 60;
        let second = self.second_of_day % 60;
        let month_name = MONTHS[self.month as usize - 1];
        let weekday_name = WEEKDAYS[self.weekday as usize];
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'B' => month_name.to_owned(),
            'b' => month_name[..3].to_owned(),
            'A' => weekday_name.to_owned(),
            'a' => weekday_name[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => format!("{:06}", self.microsecond),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            // Python gives nothing for these when, as here, the time is naive.
            'Z' | 'z' => String::new(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// Year, month and day of the Gregorian calendar, for days from 1970 on.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let leap = days_before_year(year + 1) - days_before_year(year) == 366;
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_before_year(year);
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    (year, month as i64 + 1, day + 1)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before_year(year: i64) -> i64 {
    let before = year - 1;
    let leap_days = before / 4 - before / 100 + before / 400;
    (year - 1970) * 365 + leap_days - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (1.5, "1.5"),
            (0.1, "0.1"),
            (123_456_789.125, "123456789.125"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ];
        for (number, expected) in cases {
            assert_eq!(float_repr(number), expected);
        }
    }

    #[test]
    fn dates_are_written_as_python_writes_them() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (951_782_400, "%d %B %Y", "29 February 2000"),
            (951_868_800, "%-d %b %y, %a", "1 Mar 00, Wed"),
            (1_735_689_599, "%F %T %I %p", "2024-12-31 23:59:59 11 PM"),
            (1_735_689_600, "%-m/%-d %-H %j 100%%", "1/1 0 001 100%"),
            (4_102_444_800, "%A %d %B %Y", "Friday 01 January 2100"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(at(seconds), format).unwrap(), expected);
        }
        assert!(strftime(at(0), "%Q").is_err());
        assert!(strftime(at(0), "%").is_err());
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let check = |value: Value, expected: &str| assert_eq!(to_json(&value).unwrap(), expected);
        let escaped = r#""é\"\\\b\f\n\r\t\u0000\u001f"#;
        let plain = "\u{7f}</>&'😀";
        let text = format!("é\"\\\u{8}\u{c}\n\r\t\0\u{1f}{plain}");
        check(Value::from(text), &format!("{escaped}{plain}\""));
        check(Value::from(vec![1, -2]), "[1, -2]");
        check(Value::from(u64::MAX), "18446744073709551615");
        check(Value::from(true), "true");
        check(Value::from(()), "null");
        check(Value::from(1e16), "1e+16");
        let map = [("b", Value::from(1)), ("a", Value::from(Vec::<i32>::new()))];
        check(Value::from_pairs(map), r#"{"b": 1, "a": []}"#);
        assert!(to_json(&Value::UNDEFINED).is_err());
    }
}
