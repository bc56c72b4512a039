//! Where the fields of a document stand: a tree of its values with their positions, and the words
//! of the parser's errors.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value with the position of its start; lines and columns count from 1.
#[derive(Debug)]
pub struct Located {
    line: u64,
    column: u64,
    node: Node,
}

#[derive(Debug)]
enum Node {
    Map(Vec<Entry>),
    List(Vec<Located>),
    Scalar,
}

#[derive(Debug)]
struct Entry {
    key: String,
    line: u64,
    column: u64,
    value: Located,
}

/// The tree of a document; `None` if it is no YAML.
pub fn tree(text: &str) -> Option<Located> {
    serde_saphyr::from_str::<Spanned<Node>>(text)
        .ok()
        .map(Located::from)
}

/// The parser's words in one line, without its own position and picture.
pub fn message(error: &serde_saphyr::Error) -> String {
    let mut options = serde_saphyr::RenderOptions::default();
    options.snippets = serde_saphyr::SnippetMode::Off;
    let text = error.without_snippet().render_with_options(options);
    let line = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    // " at line 3, column 5" is told in front already.
    let cut = line
        .rfind(" at line ")
        .filter(|position| line[*position..].contains("column"))
        .unwrap_or(line.len());
    line[..cut].to_owned()
}

impl From<Spanned<Node>> for Located {
    fn from(spanned: Spanned<Node>) -> Self {
        Self {
            line: spanned.referenced.line(),
            column: spanned.referenced.column(),
            node: spanned.value,
        }
    }
}

impl Located {
    /// Whether it is a list.
    pub const fn is_list(&self) -> bool {
        matches!(self.node, Node::List(_))
    }

    /// Path of the field whose name or value starts at a position.
    pub fn field_at(&self, line: u64, column: u64) -> Option<String> {
        match &self.node {
            Node::Scalar => None,
            Node::Map(entries) => entries.iter().find_map(|entry| {
                let here = (entry.line, entry.column) == (line, column)
                    || (entry.value.line, entry.value.column) == (line, column);
                let deeper = entry.value.field_at(line, column);
                match deeper {
                    Some(rest) if rest.starts_with('[') => Some(format!("{}{rest}", entry.key)),
                    Some(rest) => Some(format!("{}.{rest}", entry.key)),
                    None => here.then(|| entry.key.clone()),
                }
            }),
            Node::List(items) => items.iter().enumerate().find_map(|(position, item)| {
                let here = (item.line, item.column) == (line, column);
                match item.field_at(line, column) {
                    Some(rest) if rest.starts_with('[') => Some(format!("[{position}]{rest}")),
                    Some(rest) => Some(format!("[{position}].{rest}")),
                    None => here.then(|| format!("[{position}]")),
                }
            }),
        }
    }

    /// Position of the value of a field such as `spec.steps[2].percent`, or of the nearest parent
    /// that is there.
    pub fn position_of(&self, field: &str) -> Option<(u64, u64)> {
        let mut here = self;
        for part in field
            .split(['.', '['])
            .map(|part| part.trim_end_matches(']'))
        {
            let next = match &here.node {
                Node::Map(entries) => entries
                    .iter()
                    .find(|entry| entry.key == part)
                    .map(|entry| &entry.value),
                Node::List(items) => part.parse().ok().and_then(|at: usize| items.get(at)),
                Node::Scalar => None,
            };
            match next {
                Some(next) => here = next,
                None => break,
            }
        }
        (here.line > 0).then_some((here.line, here.column))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let value: Spanned<Node> = access.next_value()?;
            entries.push(Entry {
                line: key.referenced.line(),
                column: key.referenced.column(),
                key: key.value,
                value: value.into(),
            });
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Node>>()? {
            items.push(item.into());
        }
        Ok(Node::List(items))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
}
