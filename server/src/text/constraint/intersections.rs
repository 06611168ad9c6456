//! Texts that several patterns must match at the same time. The parser of grammars tries every pair
//! of their alternatives, in one step that none of its bounds ends: a schema of a few hundred bytes
//! could take all memory. So what this may cost is estimated before it gets the schema.

use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashSet};

/// Combinations of alternatives of the patterns that one text must match.
const COMBINATIONS_MAX: u64 = 20_000;
/// Alternatives that are counted for one of the formats.
const FORMAT_ALTERNATIVES: u64 = 16;
/// Schemas looked at, each as often as it is combined with others anew.
const LOOKS_MAX: usize = 200_000;

/// Errors: what is too much, in words.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    let mut check = Check { root: schema, seen: HashSet::new(), due: Vec::new(), looks: 0 };
    check.add(vec![schema]);
    while let Some(place) = check.due.pop() {
        check.look(place)?;
    }
    Ok(())
}

/// The schemas within a Lark grammar, and the terminals that it combines.
pub fn check_lark(text: &str) -> Result<(), String> {
    let (mut rest, mut num_ands, mut alternatives) = (text, 0u32, 0);
    while let Some(c) = rest.chars().next() {
        if let Some(schema) = rest.strip_prefix("%json") {
            let mut values = serde_json::Deserializer::from_str(schema).into_iter::<Value>();
            // The parser of grammars says what is wrong with it.
            let Some(Ok(value)) = values.next() else { return Ok(()) };
            check_schema(&value)?;
            rest = &schema[values.byte_offset()..];
            continue;
        }
        let length = match c {
            '"' | '/' => quoted_len(rest, c),
            _ => c.len_utf8(),
        };
        let (piece, after) = rest.split_at(length);
        match c {
            '&' => num_ands += 1,
            '/' => alternatives += alternatives_of(piece),
            _ => {}
        }
        rest = after;
    }
    // As many as if all patterns were shared out evenly among those that are combined: no other way
    // makes more.
    let parts = u64::from(num_ands) + 1;
    check_combinations((alternatives / parts + 2).saturating_pow(num_ands + 1), num_ands + 1)
}

/// Bytes of a string or regular expression with the marks around it.
fn quoted_len(text: &str, mark: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '\n' => return at,
            c if c == mark => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// More of a pattern's alternatives for one byte than there can be: each comes of something that
/// repeats or branches.
fn alternatives_of(pattern: &str) -> u64 {
    2 + pattern.bytes().filter(|byte| b"|*+?{[.\\".contains(byte)).count() as u64
}

fn check_combinations(combinations: u64, num_patterns: u32) -> Result<(), String> {
    if num_patterns > 1 && combinations > COMBINATIONS_MAX {
        return Err(format!(
            "{num_patterns} patterns must match the same text in some {combinations} combinations, \
             the limit is {COMBINATIONS_MAX}"
        ));
    }
    Ok(())
}

/// What a text at one place must match.
#[derive(Clone, Copy)]
struct Texts {
    num_patterns: u32,
    combinations: u64,
}

impl Texts {
    const ANY: Texts = Texts { num_patterns: 0, combinations: 1 };

    fn and(self, other: Texts) -> Texts {
        Texts {
            num_patterns: self.num_patterns.saturating_add(other.num_patterns),
            combinations: self.combinations.saturating_mul(other.combinations),
        }
    }

    fn or(self, other: Texts) -> Texts {
        Texts {
            num_patterns: self.num_patterns.max(other.num_patterns),
            combinations: self.combinations.max(other.combinations),
        }
    }
}

/// Places of values that a schema describes, each with all schemas that hold there.
struct Check<'a> {
    root: &'a Value,
    seen: HashSet<Vec<*const Value>>,
    due: Vec<Vec<&'a Value>>,
    looks: usize,
}

/// Schemas that hold at the same place.
#[derive(Default)]
struct Held<'a> {
    objects: Vec<&'a Map<String, Value>>,
    /// Of each list one.
    choices: Vec<&'a Vec<Value>>,
}

impl<'a> Check<'a> {
    fn add(&mut self, mut schemas: Vec<&'a Value>) {
        schemas.retain(|schema| schema.is_object());
        schemas.sort_by_key(|schema| std::ptr::from_ref(*schema));
        schemas.dedup_by_key(|schema| std::ptr::from_ref(*schema));
        let key = schemas.iter().map(|schema| std::ptr::from_ref(*schema)).collect();
        if !schemas.is_empty() && self.seen.insert(key) {
            self.due.push(schemas);
        }
    }

    fn look(&mut self, place: Vec<&'a Value>) -> Result<(), String> {
        let held = self.held(place)?;
        let texts = self.texts(&held, 0)?;
        check_combinations(texts.combinations, texts.num_patterns)?;
        // Below, each way to choose from one list is taken with all that could be chosen from the
        // others.
        let choices = &held.choices;
        let chosen = choices
            .iter()
            .enumerate()
            .flat_map(|(list, options)| options.iter().map(move |option| (list, option)));
        let chosen: Vec<(usize, &'a Value)> = chosen.collect();
        if chosen.is_empty() {
            return self.add_children(&held.objects);
        }
        for (list, option) in chosen {
            let others = choices.iter().enumerate().filter(|(other, _)| *other != list);
            let mut all: Vec<&'a Value> = others.flat_map(|(_, options)| options.iter()).collect();
            all.push(option);
            let mut objects = held.objects.clone();
            objects.extend(self.all_held(all)?);
            self.add_children(&objects)?;
        }
        Ok(())
    }

    /// What holds beside these, by reference or because all of a list do.
    fn held(&mut self, mut due: Vec<&'a Value>) -> Result<Held<'a>, String> {
        let mut held = Held::default();
        let mut seen = BTreeSet::new();
        while let Some(schema) = due.pop() {
            self.count(1)?;
            let Value::Object(object) = schema else { continue };
            if !seen.insert(std::ptr::from_ref(schema)) {
                continue;
            }
            held.objects.push(object);
            if let Some(pointer) = object.get("$ref").and_then(Value::as_str) {
                due.extend(self.referred(pointer));
            }
            due.extend(object.get("allOf").and_then(Value::as_array).into_iter().flatten());
            for name in ["anyOf", "oneOf"] {
                held.choices.extend(object.get(name).and_then(Value::as_array));
            }
        }
        Ok(held)
    }

    /// As the parser of grammars finds it, which knows no other references.
    fn referred(&self, pointer: &str) -> Option<&'a Value> {
        let path = pointer.strip_prefix('#')?;
        if matches!(path, "" | "/") {
            return Some(self.root);
        }
        path.strip_prefix('/')?.split('/').try_fold(self.root, |value, name| match value {
            Value::Array(list) => list.get(name.parse::<usize>().ok()?),
            _ => value.get(name),
        })
    }

    /// As `held`, with everything that may be chosen.
    fn all_held(&mut self, due: Vec<&'a Value>) -> Result<Vec<&'a Map<String, Value>>, String> {
        let mut objects = Vec::new();
        let mut due = due;
        let mut num_rounds = 0;
        while !due.is_empty() {
            let held = self.held(due)?;
            objects.extend(held.objects);
            due = held.choices.into_iter().flatten().collect();
            num_rounds += 1;
            if num_rounds > DEPTH_MAX {
                return Err(too_intertwined());
            }
        }
        Ok(objects)
    }

    fn texts(&mut self, held: &Held<'a>, depth: usize) -> Result<Texts, String> {
        if depth > DEPTH_MAX {
            return Err(too_intertwined());
        }
        let mut texts = Texts::ANY;
        for object in &held.objects {
            if let Some(pattern) = object.get("pattern").and_then(Value::as_str) {
                let combinations = alternatives_of(pattern);
                texts = texts.and(Texts { num_patterns: 1, combinations });
            }
            if object.contains_key("format") {
                let combinations = FORMAT_ALTERNATIVES;
                texts = texts.and(Texts { num_patterns: 1, combinations });
            }
        }
        for options in &held.choices {
            let mut any = Texts::ANY;
            for option in options.iter() {
                let held = self.held(vec![option])?;
                any = any.or(self.texts(&held, depth + 1)?);
            }
            texts = texts.and(any);
        }
        Ok(texts)
    }

    /// The places within an object or a list for which all these schemas hold.
    fn add_children(&mut self, objects: &[&'a Map<String, Value>]) -> Result<(), String> {
        let named = |object: &'a Map<String, Value>| {
            object.get("properties").and_then(Value::as_object).into_iter().flatten()
        };
        let names: BTreeSet<&str> = objects
            .iter()
            .flat_map(|object| named(object))
            .map(|(name, _)| name.as_str())
            .collect();
        for name in names {
            self.count(objects.len())?;
            let mut schemas = Vec::new();
            for object in objects {
                match object.get("properties").and_then(|properties| properties.get(name)) {
                    Some(schema) => schemas.push(schema),
                    None => schemas.extend(others_of(object)),
                }
            }
            self.add(schemas);
        }
        self.count(objects.len())?;
        self.add(objects.iter().flat_map(|object| others_of(object)).collect());
        let first = |object: &&'a Map<String, Value>| {
            object.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len)
        };
        let num_first = objects.iter().map(first).max().unwrap_or(0);
        for index in 0..=num_first {
            self.count(objects.len())?;
            let item = |object: &&'a Map<String, Value>| {
                let own = object.get("prefixItems").and_then(|items| items.get(index));
                own.or_else(|| object.get("items"))
            };
            self.add(objects.iter().filter_map(item).collect());
        }
        Ok(())
    }

    fn count(&mut self, looks: usize) -> Result<(), String> {
        self.looks += looks;
        if self.looks > LOOKS_MAX { Err(too_intertwined()) } else { Ok(()) }
    }
}

/// Of choices within choices, and references in them.
const DEPTH_MAX: usize = 64;

fn too_intertwined() -> String {
    "its parts hold for each other in too many ways".into()
}

/// What an object's schema says of the values whose names it does not list.
fn others_of(object: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let patterns = object.get("patternProperties").and_then(Value::as_object);
    let patterns = patterns.into_iter().flat_map(|patterns| patterns.values());
    object.get("additionalProperties").into_iter().chain(patterns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patterns(count: usize) -> Vec<Value> {
        (0..count).map(|i| json!({"pattern": format!("(.*x){{{i}}}")})).collect()
    }

    #[test]
    fn schemas_that_people_write_pass() {
        let string = |pattern: &str| json!({"type": "string", "pattern": pattern});
        let id = string("^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$");
        let password = ["[A-Z]", "[a-z]", "[0-9]", "[^A-Za-z0-9]"].map(string);
        let many: Map<String, Value> =
            (0..500).map(|i| (format!("p{i}"), string("^(a|b)+c?[0-9]{1,3}$"))).collect();
        let shapes: Vec<Value> =
            (0..40).map(|i| json!({"properties": {"kind": {"const": i}, "id": id}})).collect();
        let tree = json!({"$ref": "#/$defs/tree"});
        for schema in [
            json!(true),
            json!({"type": "object", "properties": many}),
            json!({"allOf": password, "type": "string", "minLength": 12}),
            json!({"allOf": [{"anyOf": shapes}, {"properties": {"id": {"format": "uuid"}}}]}),
            json!({"$ref": "#/$defs/tree", "$defs": {"tree": {
                "properties": {"name": id, "left": tree, "right": {"anyOf": [tree, {"const": 0}]}},
            }}}),
        ] {
            assert_eq!(check_schema(&schema), Ok(()), "{schema}");
        }
        let lark = "start: \"a && b\" | T // a & b & \"c\nT: /[a-z&]+/ & /.*x.*/\n";
        assert_eq!(check_lark(lark), Ok(()));
    }

    #[test]
    fn what_would_take_all_memory_is_refused_wherever_it_stands() {
        let all = json!({"allOf": patterns(20)});
        let nested =
            patterns(20).into_iter().fold(json!({}), |inner, p| json!({"allOf": [inner, p]}));
        let by_name: Vec<Value> =
            patterns(20).into_iter().map(|p| json!({"properties": {"a": {"items": p}}})).collect();
        let chosen: Vec<Value> =
            patterns(20).into_iter().map(|p| json!({"anyOf": [{"const": 1}, p]})).collect();
        let named: Map<String, Value> =
            patterns(20).into_iter().enumerate().map(|(i, p)| (i.to_string(), p)).collect();
        let refs: Vec<Value> = (0..20).map(|i| json!({"$ref": format!("#/$defs/{i}")})).collect();
        // Each is reached only by a way through itself.
        let turns: Map<String, Value> = patterns(20)
            .into_iter()
            .enumerate()
            .flat_map(|(i, p)| {
                let (there, back) = (format!("#/$defs/b{i}"), format!("#/$defs/a{i}"));
                let a = json!({"properties": {"text": p, "next": {"$ref": there}}});
                let b = json!({"properties": {"next": {"$ref": back}}});
                [(format!("a{i}"), a), (format!("b{i}"), b)]
            })
            .collect();
        let ends: Vec<Value> = (0..20).map(|i| json!({"$ref": format!("#/$defs/b{i}")})).collect();
        for schema in [
            all.clone(),
            nested,
            json!({"allOf": by_name}),
            json!({"allOf": chosen}),
            json!({"allOf": refs, "$defs": named}),
            json!({
                "properties": {"x": {"$ref": "#/$defs/a3"}, "y": {"allOf": ends}},
                "$defs": turns,
            }),
            json!({"items": {"additionalProperties": {"anyOf": [{"type": "null"}, all]}}}),
            json!({"type": "string", "format": "uri", "allOf": [
                {"pattern": "(a|b|.c|.*d)*"}, {"pattern": "(a.*|.*b|[cd]+|.*)*"},
                {"pattern": "(.*a|.*b|.*c|.*d)"},
            ]}),
        ] {
            let refused = check_schema(&schema).expect_err("too much");
            assert!(refused.contains("must match the same text"), "{schema}: {refused}");
        }
        let both = |text: &str| format!("start: T\n%ignore / /\n{text}\n");
        let ands: Vec<String> = (0..9).map(|i| format!("/(.*a){{{i}}}/")).collect();
        for lark in [
            both(&format!("T: {}", ands.join(" & "))),
            both(&format!("T: \"&\"\nj: %json {}", json!({"items": {"allOf": patterns(20)}}))),
        ] {
            let refused = check_lark(&lark).expect_err("too much");
            assert!(refused.contains("must match the same text"), "{lark}: {refused}");
        }
    }

    #[test]
    fn the_check_itself_is_bounded() {
        let mut schema = json!({"const": 1});
        for i in 0..40 {
            let more = json!({"anyOf": [{"properties": {"a": schema}}, {"const": i}]});
            schema = json!({"allOf": [more.clone(), {"anyOf": [{"type": "null"}, {"const": i}]}]});
        }
        // Whichever it says, it says it.
        let _ = check_schema(&schema);
        let defs: Map<String, Value> = (0..30)
            .map(|i| {
                let next = json!({"$ref": format!("#/$defs/{}", i + 1)});
                (i.to_string(), json!({"anyOf": [next, next, {"pattern": "a.*"}]}))
            })
            .collect();
        let doubled = json!({"$ref": "#/$defs/0", "$defs": defs});
        assert!(check_schema(&doubled).is_err(), "2^30 ways through it");
    }
}
