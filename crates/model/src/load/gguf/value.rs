//! Metadata of a GGUF file: typed values that borrow the file's bytes, and the cursor that reads them.
//!
//! Nothing is copied, and no count is believed before the bytes for it are seen.

use super::error::GgufError;

/// Arrays within arrays; the format sets no limit, and real files have one level.
const MOST_NESTING: usize = 4;

/// A metadata value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Unsigned integers of any width.
    Unsigned(u64),
    /// Signed integers of any width.
    Signed(i64),
    /// A number in single precision.
    F32(f32),
    /// A number in double precision.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Values of one type.
    Array(Array<'a>),
}

impl Value<'_> {
    /// The value in a message; arrays by their length alone.
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::F32(value) => value.to_string(),
            Self::F64(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("`{}`", text.chars().take(80).collect::<String>()),
            Self::Array(array) => format!("an array of {}", array.count),
        }
    }
}

/// Values of one type, checked but not yet decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    element: u32,
    /// Number of values.
    pub count: u64,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The values one after another.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (element, mut left) = (self.element, self.count);
        let mut cursor = Cursor::new(self.bytes);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            // The bytes were checked when the array was read.
            cursor.value(element, "array", 0).ok()
        })
    }

    /// The texts, if it is an array of texts.
    pub fn texts(&self) -> Option<Vec<&'a str>> {
        if self.element != TEXT {
            return None;
        }
        let texts = self.values().filter_map(|value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        });
        Some(texts.collect())
    }

    /// Whole numbers, if it is an array of those.
    pub fn integers(&self) -> Option<impl Iterator<Item = i64> + use<'a>> {
        if !matches!(self.element, 0..=5 | 10 | 11) {
            return None;
        }
        Some(self.values().map(|value| match value {
            Value::Unsigned(value) => i64::try_from(value).unwrap_or(i64::MAX),
            Value::Signed(value) => value,
            _ => 0,
        }))
    }
}

const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// The fewest bytes that a value of a type takes; none for a type that does not exist.
fn least_bytes(code: u32) -> Option<u64> {
    Some(match code {
        0 | 1 | BOOL => 1,
        2 | 3 => 2,
        4..=6 => 4,
        TEXT | 10..=12 => 8,
        ARRAY => 12,
        _ => return None,
    })
}

/// Reads little-endian values from the front of some bytes.
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The position.
    pub fn at(&self) -> u64 {
        self.at as u64
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], GgufError> {
        if count > self.left() {
            let (at, size) = (self.at(), self.bytes.len() as u64);
            return Err(GgufError::TooShort { what: what.to_owned(), at, needed: count, size });
        }
        let end = self.at + count as usize;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    /// An unsigned number of four bytes.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.fixed(what).map(u32::from_le_bytes)
    }

    /// An unsigned number of eight bytes.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.fixed(what).map(u64::from_le_bytes)
    }

    /// A number of entries that take at least `least` bytes each.
    ///
    /// # Errors
    /// What is left cannot hold them.
    pub fn count(&mut self, least: u64, what: &str) -> Result<u64, GgufError> {
        let count = self.u64(what)?;
        if count > self.left() / least {
            return Err(GgufError::Count { what: what.to_owned(), count, left: self.left() });
        }
        Ok(count)
    }

    /// A text with its length before it.
    ///
    /// # Errors
    /// It is longer than what is left, or not UTF-8.
    pub fn text(&mut self, what: &str) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::Text { what: what.to_owned() })
    }

    /// The name of a key or a tensor.
    ///
    /// # Errors
    /// It is empty, longer than `most` bytes, or not UTF-8.
    pub fn name(&mut self, what: &'static str, most: u64) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        if length == 0 || length > most {
            return Err(GgufError::NameLength { what, length, most });
        }
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::Text { what: what.to_owned() })
    }

    /// The value of metadata key `key`, with its type before it.
    ///
    /// # Errors
    /// The type does not exist, or the value does not fit into what is left.
    pub fn typed_value(&mut self, key: &str) -> Result<Value<'a>, GgufError> {
        let code = self.u32(key)?;
        self.value(code, key, 0)
    }

    fn value(&mut self, code: u32, key: &str, depth: usize) -> Result<Value<'a>, GgufError> {
        Ok(match code {
            0 => Value::Unsigned(u64::from(self.fixed::<1>(key)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.fixed(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.fixed(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.fixed(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.fixed(key)?))),
            6 => Value::F32(f32::from_le_bytes(self.fixed(key)?)),
            BOOL => match self.fixed::<1>(key)?[0] {
                value @ (0 | 1) => Value::Bool(value == 1),
                value => return Err(GgufError::Bool { key: key.to_owned(), value }),
            },
            TEXT => Value::Text(self.text(key)?),
            ARRAY => Value::Array(self.array(key, depth)?),
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.fixed(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed(key)?)),
            code => return Err(GgufError::ValueType { key: key.to_owned(), code }),
        })
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array<'a>, GgufError> {
        if depth >= MOST_NESTING {
            return Err(GgufError::Nesting { key: key.to_owned(), most: MOST_NESTING });
        }
        let element = self.u32(key)?;
        let Some(least) = least_bytes(element) else {
            return Err(GgufError::ValueType { key: key.to_owned(), code: element });
        };
        let count = self.count(least, key)?;
        let start = self.at;
        match element {
            BOOL | TEXT | ARRAY => {
                for _ in 0..count {
                    self.value(element, key, depth + 1)?;
                }
            }
            _ => {
                self.take(count * least, key)?;
            }
        }
        Ok(Array { element, count, bytes: &self.bytes[start..self.at] })
    }
}
