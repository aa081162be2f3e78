//! Rows of *Parquet* files.

use std::path::Path;

use anyhow::Result;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};

use crate::base::error::Error;
use crate::base::plain::shortened;

/// The key of an object that stands for bytes that are no text; its value is how many they are.
const BINARY: &str = "binary data";

/// The first `most` rows of a file.
pub fn rows(path: &Path, bytes: Vec<u8>, most: usize) -> Result<Vec<Value>> {
    let broken = |e: ParquetError| {
        Error::Input(format!("{}: {}", path.display(), shortened(&e.to_string(), 400)))
    };
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(broken)?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None).map_err(broken)?.take(most) {
        rows.push(object(&row.map_err(broken)?));
    }
    Ok(rows)
}

fn object(row: &Row) -> Value {
    let fields = row.get_column_iter();
    Value::Object(fields.map(|(name, field)| (name.clone(), value(field))).collect())
}

fn value(field: &Field) -> Value {
    match field {
        // Spark, Impala and Hive write text without saying that it is text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => json!({ BINARY: bytes.len() }),
        },
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let name = |key: &Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let entries = map.entries().iter();
            Value::Object(Map::from_iter(entries.map(|(key, of)| (name(key), value(of)))))
        }
        other => other.to_json_value(),
    }
}

/// How many bytes an object stands for that are no text.
pub fn binary(value: &Value) -> Option<u64> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    object.get(BINARY)?.as_u64()
}
