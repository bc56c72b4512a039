//! Pages of lists. A token is the key of the last row in hex, so a page continues where the last
//! one ended, whatever was added or removed meanwhile.

use tidegate_proto::control::v1::Page;
use tonic::Status;

use super::status;

const DEFAULT: usize = 100;
const MOST: usize = 1_000;

/// One page of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct Slice<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// For the next page; empty: there is none.
    pub next: String,
}

/// How many rows a page has, and the key after which it begins.
///
/// # Errors
/// The size or the token is wrong.
pub fn bounds(page: Option<&Page>) -> Result<(usize, Option<String>), Status> {
    let (size, token) = page.map_or((0, ""), |page| (page.size, page.token.as_str()));
    let size = match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => DEFAULT,
        size if size <= MOST => size,
        _ => {
            return Err(status::wrong_field(
                "page.size",
                format!("want at most {MOST}"),
            ));
        }
    };
    let after = match token {
        "" => None,
        token => Some(
            hex::decode(token)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(wrong_token)?,
        ),
    };
    Ok((size, after))
}

/// Cuts a page out of rows that come with their keys in ascending order.
///
/// # Errors
/// The size or the token is wrong.
pub fn page<T>(
    page: Option<&Page>,
    rows: impl IntoIterator<Item = (String, T)>,
) -> Result<Slice<T>, Status> {
    let (size, after) = bounds(page)?;
    let mut kept = Vec::new();
    let mut last = String::new();
    for (key, row) in rows {
        if after.as_ref().is_some_and(|after| key <= *after) {
            continue;
        }
        if kept.len() == size {
            return Ok(Slice {
                rows: kept,
                next: hex::encode(last),
            });
        }
        kept.push(row);
        last = key;
    }
    Ok(Slice {
        rows: kept,
        next: String::new(),
    })
}

/// A key that makes larger numbers come first.
#[must_use]
pub fn descending(number: u128) -> String {
    format!("{:032x}", u128::MAX - number)
}

fn wrong_token() -> Status {
    status::wrong_field("page.token", "want next_page_token of the answer before")
}

/// The number of a key that [`descending`] made.
///
/// # Errors
/// The key is of another list.
pub fn number(key: &str) -> Result<u128, Status> {
    u128::from_str_radix(key, 16)
        .map(|number| u128::MAX - number)
        .map_err(|_| wrong_token())
}

/// A key in the order of the log.
#[must_use]
pub fn at(index: u64, ordinal: u32) -> String {
    format!("{index:020}/{ordinal:010}")
}

/// The position of a key that [`at`] made.
///
/// # Errors
/// The key is of another list.
pub fn position(key: &str) -> Result<(u64, u32), Status> {
    let (index, ordinal) = key.split_once('/').ok_or_else(wrong_token)?;
    match (index.parse(), ordinal.parse()) {
        (Ok(index), Ok(ordinal)) => Ok((index, ordinal)),
        (Err(_), _) | (_, Err(_)) => Err(wrong_token()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> impl Iterator<Item = (String, u32)> {
        (0..5).map(|n| (format!("k{n}"), n))
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let mut token = String::new();
        let mut seen = Vec::new();
        loop {
            let slice = page(Some(&Page { size: 2, token }), rows()).unwrap();
            seen.extend(slice.rows);
            token = slice.next;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn wrong_pages_are_refused() {
        for wrong in [
            Page {
                size: 1_001,
                token: String::new(),
            },
            Page {
                size: 0,
                token: "zz".to_owned(),
            },
        ] {
            assert!(page(Some(&wrong), rows()).is_err());
        }
        assert!(descending(2) < descending(1));
        assert_eq!(number(&descending(7)).unwrap(), 7);
        assert_eq!(position(&at(7, 3)).unwrap(), (7, 3));
        assert!(number(&at(7, 3)).is_err() && position(&descending(7)).is_err());
    }
}
