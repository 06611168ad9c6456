//! Reads the fields of a JSON body: each is described once, for reading and for /openapi.json.

use super::error::{RequestError, excerpt};
use super::limits::{JSON_DEPTH_MAX, JSON_VALUES_MAX, NAME_BYTES_MAX};
use serde_json::{Map, Value, json};

/// One field of a request: its name, what it may hold, what it does.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub doc: &'static str,
}

pub const fn field(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, doc }
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Boolean,
    /// From `min` to `max`, both included.
    Integer {
        min: i64,
        max: i64,
    },
    /// From `min` to `max`, both included.
    Number {
        min: f64,
        max: f64,
    },
    /// Above 0, to `max` included.
    Positive {
        max: f64,
    },
    /// At most `NAME_BYTES_MAX` bytes.
    Name,
    /// Read by code of its own; the function gives the JSON schema.
    Shape(fn() -> Value),
}

impl Field {
    /// The field as a JSON schema. Null means the same as leaving it out.
    pub fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Boolean => json!({"type": ["boolean", "null"]}),
            Kind::Integer { min, max } => {
                json!({"type": ["integer", "null"], "minimum": min, "maximum": max})
            }
            Kind::Number { min, max } => {
                json!({"type": ["number", "null"], "minimum": min, "maximum": max})
            }
            Kind::Positive { max } => {
                json!({"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": max})
            }
            Kind::Name => json!({"type": ["string", "null"], "maxLength": NAME_BYTES_MAX}),
            Kind::Shape(schema) => schema(),
        };
        schema["description"] = self.doc.into();
        schema
    }
}

/// The fields of one body. Each getter takes its field out; null counts as absent.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    read: Vec<&'static str>,
}

impl Fields {
    /// Errors: not JSON (with the place), not an object, too deep, too many values.
    pub fn parse(body: &[u8]) -> Result<Fields, RequestError> {
        check_size(body)?;
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| RequestError::MalformedJson { reason: e.to_string() })?;
        match value {
            Value::Object(map) => Ok(Fields { map, read: Vec::new() }),
            other => Err(RequestError::NotAnObject { found: kind_name(&other) }),
        }
    }

    /// The fields of an object within a body, which was checked with it.
    pub fn of_object(map: Map<String, Value>) -> Fields {
        Fields { map, read: Vec::new() }
    }

    pub fn take(&mut self, field: &Field) -> Option<Value> {
        self.read.push(field.name);
        self.map.remove(field.name).filter(|v| !v.is_null())
    }

    /// Puts a field in, as if the client had sent it.
    pub fn set(&mut self, field: &Field, value: Value) {
        self.map.insert(field.name.to_owned(), value);
    }

    pub fn boolean(&mut self, field: &Field) -> Result<Option<bool>, RequestError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(wrong_type(field.name, &other, "a boolean")),
        }
    }

    pub fn integer(&mut self, field: &Field) -> Result<Option<i64>, RequestError> {
        let Kind::Integer { min, max } = field.kind else {
            unreachable!("{} is no integer", field.name)
        };
        let Some(value) = self.take(field) else { return Ok(None) };
        let integer = as_integer(field.name, &value)?;
        if integer < i128::from(min) || integer > i128::from(max) {
            let range = match max {
                i64::MAX => format!("an integer of at least {min}"),
                _ => format!("an integer from {min} to {max}"),
            };
            return Err(out_of_range(field.name, &value, range));
        }
        Ok(Some(integer as i64))
    }

    /// A count: an integer whose range starts at 0 or above.
    pub fn count(&mut self, field: &Field) -> Result<Option<usize>, RequestError> {
        Ok(self.integer(field)?.map(|i| i as usize))
    }

    pub fn number(&mut self, field: &Field) -> Result<Option<f32>, RequestError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(field.name, &value, "a number"));
        };
        let (good, range) = match field.kind {
            Kind::Number { min, max } => {
                ((min..=max).contains(&number), format!("a number from {min} to {max}"))
            }
            Kind::Positive { max } => {
                // In f32, in which it is used, it must not become 0 either.
                let positive = number as f32 >= f32::MIN_POSITIVE;
                (positive && number <= max, format!("a number above 0 and up to {max}"))
            }
            _ => unreachable!("{} is no number", field.name),
        };
        if good { Ok(Some(number as f32)) } else { Err(out_of_range(field.name, &value, range)) }
    }

    pub fn name(&mut self, field: &Field) -> Result<Option<String>, RequestError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(s)) if s.len() <= NAME_BYTES_MAX => Ok(Some(s)),
            Some(Value::String(s)) => Err(RequestError::Invalid {
                field: field.name.into(),
                reason: format!("has {} bytes, at most {NAME_BYTES_MAX}", s.len()),
            }),
            Some(other) => Err(wrong_type(field.name, &other, "a string")),
        }
    }

    /// Names of the fields asked for so far.
    pub fn read(&self) -> &[&'static str] {
        &self.read
    }

    /// Names of the fields that nobody has asked for and that are not null.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str())
    }

    /// A field that this server knows of but cannot serve, where it has any value at all.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }
}

/// An integer of any size, also if written like 5.0.
pub fn as_integer(field: &str, value: &Value) -> Result<i128, RequestError> {
    let number = match value {
        Value::Number(number) => number,
        other => return Err(wrong_type(field, other, "an integer")),
    };
    if let Some(integer) = number.as_i128() {
        return Ok(integer);
    }
    match number.as_f64() {
        // Beyond 2^53 not every integer has a double, so such a number is not what was meant.
        Some(float) if float.fract() == 0.0 && float.abs() <= (1u64 << 53) as f64 => {
            Ok(float as i128)
        }
        _ => Err(wrong_type(field, value, "an integer")),
    }
}

pub fn wrong_type(field: &str, value: &Value, expected: &'static str) -> RequestError {
    let found = match value {
        Value::Number(number) => excerpt(&number.to_string()),
        other => kind_name(other).to_owned(),
    };
    RequestError::WrongType { field: field.into(), found, expected }
}

pub fn out_of_range(field: &str, value: &Value, range: String) -> RequestError {
    RequestError::OutOfRange { field: field.into(), value: show(value), range }
}

/// Takes the string `name` out of an object that stands at `field`.
///
/// Errors: it is missing, or no string.
pub fn string_of(
    field: &str,
    name: &str,
    object: &mut Map<String, Value>,
) -> Result<String, RequestError> {
    let field = format!("{field}.{name}");
    match object.remove(name) {
        None | Some(Value::Null) => Err(RequestError::Missing { field }),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong_type(&field, &other, "a string")),
    }
}

/// A value for a message: short ones as they are, of long ones only the kind.
pub fn show(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind_name(value).to_owned(),
        scalar => excerpt(&scalar.to_string()),
    }
}

fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Bounds depth and number of values before anything is built from the body, which then takes at
/// most a known multiple of memory. Broken JSON passes; the parser names what is wrong with it.
fn check_size(body: &[u8]) -> Result<(), RequestError> {
    let (mut depth, mut values) = (0usize, 1usize);
    let (mut in_string, mut escaped) = (false, false);
    for &byte in body {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                values += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' => values += 1,
            _ => {}
        }
        if depth > JSON_DEPTH_MAX {
            return Err(RequestError::TooDeep { depth_max: JSON_DEPTH_MAX });
        }
        if values > JSON_VALUES_MAX {
            return Err(RequestError::TooManyValues { values_max: JSON_VALUES_MAX });
        }
    }
    Ok(())
}
