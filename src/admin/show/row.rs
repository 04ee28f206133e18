//! RowDescription and DataRow, appended to the caller's buffer.

use std::fmt::Display;
use std::io::Write;

use super::columns::{self, Column};
use crate::admin::command::Topic;
use crate::admin::reply::message;

/// The RowDescription of a topic.
pub fn description(out: &mut Vec<u8>, topic: Topic) {
    columns_description(out, columns::of(topic).iter().copied(), |_| 0);
}

/// A RowDescription: no table, no attribute number, no type modifier. `format` is the format code of the column at an
/// index; simple queries have text, 0.
pub fn columns_description(
    out: &mut Vec<u8>,
    columns: impl ExactSizeIterator<Item = Column>,
    format: impl Fn(usize) -> i16,
) {
    message(out, b'T', |out| {
        count(out, columns.len());
        for (index, column) in columns.enumerate() {
            out.extend_from_slice(column.name.as_bytes());
            out.push(0);
            out.extend_from_slice(&0_u32.to_be_bytes());
            out.extend_from_slice(&0_i16.to_be_bytes());
            out.extend_from_slice(&column.kind.oid().to_be_bytes());
            out.extend_from_slice(&column.kind.typlen().to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&format(index).to_be_bytes());
        }
    });
}

/// A DataRow whose fields `fill` appends; they must be as many as `width` says.
pub fn data(out: &mut Vec<u8>, width: usize, fill: impl FnOnce(&mut Fields<'_>)) {
    message(out, b'D', |out| {
        count(out, width);
        let mut fields = Fields { out, missing: width };
        fill(&mut fields);
        debug_assert_eq!(fields.missing, 0, "a row needs all its fields");
    });
}

fn count(out: &mut Vec<u8>, columns: usize) {
    let columns = i16::try_from(columns).expect("a topic has some dozen columns");
    out.extend_from_slice(&columns.to_be_bytes());
}

/// The fields of one DataRow.
pub struct Fields<'a> {
    out: &'a mut Vec<u8>,
    missing: usize,
}

impl Fields<'_> {
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.field(Some(value.as_bytes()))
    }

    /// NULL for `None`.
    pub fn maybe(&mut self, value: Option<&str>) -> &mut Self {
        self.field(value.map(str::as_bytes))
    }

    /// In whatever encoding; NULL for `None`.
    pub fn bytes(&mut self, value: Option<&[u8]>) -> &mut Self {
        self.field(value)
    }

    /// Written into its place.
    pub fn display(&mut self, value: impl Display) -> &mut Self {
        let at = self.out.len();
        self.field(Some(b""));
        write!(self.out, "{value}").expect("a Vec takes everything");
        let length = length(self.out.len() - at - size_of::<i32>());
        self.out[at..at + size_of::<i32>()].copy_from_slice(&length);
        self
    }

    /// For int4 columns: what does not fit shows as the nearest that does, because typed clients refuse anything else.
    pub fn int4(&mut self, value: impl TryInto<i64>) -> &mut Self {
        let value = value.try_into().unwrap_or(i64::MAX);
        self.int8(value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)))
    }

    /// For int8 columns, likewise.
    pub fn int8(&mut self, value: impl TryInto<i64>) -> &mut Self {
        self.text(itoa::Buffer::new().format(value.try_into().unwrap_or(i64::MAX)))
    }

    pub fn flag(&mut self, value: bool) -> &mut Self {
        self.text(if value { "1" } else { "0" })
    }

    fn field(&mut self, value: Option<&[u8]>) -> &mut Self {
        debug_assert!(self.missing > 0, "a row has too many fields");
        self.missing = self.missing.saturating_sub(1);
        match value {
            None => self.out.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                self.out.extend_from_slice(&length(value.len()));
                self.out.extend_from_slice(value);
            }
        }
        self
    }
}

/// A field's length, before it.
fn length(bytes: usize) -> [u8; size_of::<i32>()] {
    i32::try_from(bytes).expect("a console value is far below 2 GB").to_be_bytes()
}
