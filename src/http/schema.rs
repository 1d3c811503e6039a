//! What the JSON of replies looks like, said once: `openapi.json` is written from it, and tests hold replies against it.
//! Pure.

use serde_json::{Value, json};

use crate::query::field::{Kind, Told};

/// The form of a JSON value. Each handler keeps that of its reply beside the type that it sends.
#[derive(Clone, Copy, Debug)]
pub enum Schema {
    /// A text.
    Text,
    /// A text or a whole number.
    Id,
    /// One of these texts.
    Word(&'static [&'static str]),
    /// A moment: RFC 3339 in UTC with milliseconds.
    Time,
    /// A number.
    Number,
    /// A whole number.
    Whole,
    /// True or false.
    Truth,
    /// That, or null.
    Maybe(&'static Self),
    /// A list of those.
    List(&'static Self),
    /// A list of at least one and at most so many of those.
    Few(usize, &'static Self),
    /// An object with all of these members and no others.
    Object(&'static [(&'static str, Self)]),
    /// An object whose members have names that are not known beforehand.
    Map(&'static Self),
    /// Anything.
    Any,
}

impl Schema {
    /// As JSON Schema.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Text => json!({"type": "string"}),
            Self::Id => json!({"type": ["string", "integer"]}),
            Self::Word(words) => json!({"type": "string", "enum": words}),
            Self::Time => json!({"type": "string", "format": "date-time"}),
            Self::Number => json!({"type": "number"}),
            Self::Whole => json!({"type": "integer"}),
            Self::Truth => json!({"type": "boolean"}),
            Self::Maybe(inner) => json!({"anyOf": [inner.to_json(), {"type": "null"}]}),
            Self::List(inner) => json!({"type": "array", "items": inner.to_json()}),
            Self::Few(most, inner) => {
                json!({"type": "array", "items": inner.to_json(), "minItems": 1, "maxItems": most})
            }
            Self::Object(members) => {
                let names: Vec<_> = members.iter().map(|(name, _)| *name).collect();
                object(members.iter().map(|(name, schema)| (*name, schema.to_json())), &names)
            }
            Self::Map(inner) => json!({"type": "object", "additionalProperties": inner.to_json()}),
            Self::Any => json!({}),
        }
    }
}

/// An object of these members and no others, of which `required` are always there.
fn object<'a>(members: impl Iterator<Item = (&'a str, Value)>, required: &[&str]) -> Value {
    let properties: serde_json::Map<_, _> = members.map(|(name, schema)| (name.to_owned(), schema)).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// An object with a list of rows under `list`: each row has some of `columns`, those that `fields` asks for. `next` says
/// whether the list has pages.
#[must_use]
pub fn rows(list: &str, columns: &[Told], next: bool) -> Value {
    let row = object(columns.iter().map(|column| (column.name, cell(column))), &[]);
    let rows = json!({"type": "array", "items": row});
    // What costs are in, and the window's standing charge, where a tariff is set.
    let priced = columns.iter().any(|column| column.name == "cost");
    let currency = priced.then(|| ("currency", json!({"type": "string", "description": "of costs: ISO 4217"})));
    let charge = json!({"type": "number", "minimum": 0, "description": "of the window, part of no device's cost"});
    let tariff = currency.into_iter().chain((priced && !next).then_some(("standing_charge", charge)));
    if !next {
        return object(tariff.chain([(list, rows)]), &[list]);
    }
    let cursor = json!({"type": ["string", "null"], "description": "the `cursor` of the next page"});
    object(tariff.chain([(list, rows), ("next", cursor)]), &[list, "next"])
}

fn cell(column: &Told) -> Value {
    let mut types = match column.kind {
        // RFC 3339, or Unix milliseconds with `time=ms`.
        Kind::Time => vec!["string", "integer"],
        Kind::Text => vec!["string"],
        Kind::Number => vec!["number"],
        Kind::Count => vec!["integer"],
        Kind::Truth => vec!["boolean"],
        Kind::Words => vec!["array"],
    };
    if column.optional {
        types.push("null");
    }
    let mut schema = json!({"type": types, "description": column.about});
    let more = match column.kind {
        Kind::Time => Some(("format", json!("date-time"))),
        Kind::Number | Kind::Count => Some(("minimum", json!(0))),
        Kind::Words => Some(("items", json!({"type": "string"}))),
        Kind::Text | Kind::Truth => None,
    };
    if let (Some(schema), Some((key, value))) = (schema.as_object_mut(), more) {
        schema.insert(key.to_owned(), value);
    }
    schema
}
