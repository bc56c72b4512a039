//! The documents of a stream, each with the place where it stands: YAML between marks, and JSON as it
//! is written elsewhere, a list of objects or one behind the other.

use serde::de::IgnoredAny;

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The document.
    pub text: String,
    /// Lines of the file before it.
    pub before: usize,
    /// Its first line with content, counted from 1.
    pub first_line: usize,
}

impl Document {
    /// Whether it says nothing: only remarks and empty lines.
    pub fn is_empty(&self) -> bool {
        !self.text.lines().any(is_content)
    }
}

fn is_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

/// The documents of a text. Lines and columns in them are those of the text, less [`Document::before`].
pub fn split(text: &str) -> Vec<Document> {
    marked(text).into_iter().flat_map(values).collect()
}

/// Splits at the marks `---`. A line that starts with it is a mark wherever it stands (YAML 1.2,
/// 9.1.2), so no parser is needed; what follows on the same line belongs to the document.
fn marked(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut before = 0;
    for (number, line) in text.lines().enumerate() {
        let rest = line.strip_prefix("---");
        let is_mark = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if is_mark {
            documents.push(document(&current, before));
            current.clear();
            before = number;
            current.push_str("   ");
            current.push_str(rest.unwrap_or_default());
        } else {
            current.push_str(line);
        }
        current.push('\n');
    }
    documents.push(document(&current, before));
    documents
}

fn document(text: &str, before: usize) -> Document {
    let offset = text.lines().position(is_content).unwrap_or(0);
    Document {
        text: text.to_owned(),
        before,
        first_line: before + offset + 1,
    }
}

/// The values of a document that is JSON: all that stand behind each other, and of a list each one in
/// it. What is no JSON, also behind a value, is left as it is, for YAML to understand or to complain.
fn values(document: Document) -> Vec<Document> {
    let text = document.text.as_str();
    if !text.trim_start().starts_with(['{', '[']) {
        return vec![document];
    }
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut parts = Vec::new();
    let mut done = 0;
    while let Some(Ok(IgnoredAny)) = stream.next() {
        let end = stream.byte_offset();
        match elements(text, done, end) {
            Some(inner) => parts.extend(inner),
            None => parts.push((done, end)),
        }
        done = end;
    }
    if done == 0 {
        return vec![document];
    }
    parts.push((done, text.len()));
    cut_out(&document, &parts)
}

/// Where the elements of a list stand; none: it is no list. The text there is known to be JSON.
fn elements(text: &str, start: usize, end: usize) -> Option<Vec<(usize, usize)>> {
    let bytes = text.as_bytes().get(start..end)?;
    if bytes.trim_ascii_start().first() != Some(&b'[') {
        return None;
    }
    let mut found = Vec::new();
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut from = start;
    for (at, byte) in bytes
        .iter()
        .enumerate()
        .map(|(at, byte)| (start + at, byte))
    {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth == 1 {
                    from = at + 1;
                }
            }
            b',' if depth == 1 => {
                found.push((from, at));
                from = at + 1;
            }
            b']' | b'}' => {
                if depth == 1 {
                    found.push((from, at));
                }
                depth = depth.saturating_sub(1);
            }
            _ => {}
        }
    }
    Some(found)
}

/// Parts of a document, each with blanks before it, so that columns stay what they are.
fn cut_out(document: &Document, parts: &[(usize, usize)]) -> Vec<Document> {
    let text = document.text.as_str();
    let (mut lines, mut line_start, mut counted) = (0, 0, 0);
    let mut found = Vec::new();
    for (start, end) in parts {
        let part = text.get(*start..*end).unwrap_or_default();
        let blank = part.len() - part.trim_start().len();
        let start = start + blank;
        for (at, _) in text
            .get(counted..start)
            .unwrap_or_default()
            .match_indices('\n')
        {
            lines += 1;
            line_start = counted + at + 1;
        }
        counted = start;
        let column = text.get(line_start..start).unwrap_or_default();
        let blanks = " ".repeat(column.chars().count());
        let own = part.trim();
        if !own.is_empty() {
            let before = document.before + lines;
            found.push(self::document(&format!("{blanks}{own}\n"), before));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_split_and_lines_stay() {
        let found = split("a: 1\n---\n# x\nb: 2\n--- {c: 3}\n");
        let lines: Vec<_> = found.iter().map(|d| d.first_line).collect();
        assert_eq!(lines, [1, 4, 5]);
        assert_eq!(found[1].text, "   \n# x\nb: 2\n");
        assert_eq!(found[2].text, "    {c: 3}\n");
        let before: Vec<_> = found.iter().map(|d| d.before).collect();
        assert_eq!(before, [0, 1, 4]);
        assert!(split("---\n# nothing\n").iter().all(Document::is_empty));
    }

    fn texts(text: &str) -> Vec<(usize, String)> {
        let found = split(text).into_iter();
        let told = found.filter(|document| !document.is_empty());
        told.map(|document| (document.first_line, document.text))
            .collect()
    }

    #[test]
    fn a_list_and_a_row_of_json_are_their_values() {
        let list = "[\n  {\"a\": \"x]\\\"},{\"}, {\"b\": [1, {}]}\n,\n\n  {\"c\": 3}]\n";
        assert_eq!(
            texts(list),
            [
                (2, "  {\"a\": \"x]\\\"},{\"}\n".to_owned()),
                (2, format!("{}{{\"b\": [1, {{}}]}}\n", " ".repeat(20))),
                (5, "  {\"c\": 3}\n".to_owned()),
            ]
        );
        let row = "{\"a\": 1}\n{\"b\": 2} {\"c\": 3}\n# the end\n";
        let lines: Vec<usize> = texts(row).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 2, 2]);
        let mixed = "a: 1\n---\n[{\"b\": 2}]\n---\n{\"c\": 3}\n";
        let lines: Vec<usize> = texts(mixed).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 3, 5]);
        assert!(texts("[]\n").is_empty() && texts("[\n]\n[]").is_empty());
    }

    #[test]
    fn what_is_no_json_is_left_to_yaml() {
        for text in [
            "{a: it's}\n",
            "[{\"a\": 1}, {\"b\": \n",
            "[{a: 1}]\n",
            "[1, 2\n",
        ] {
            assert_eq!(texts(text), [(1, text.to_owned())]);
        }
        let broken = "{\"a\": 1}\n{\"b\": \n";
        assert_eq!(texts(broken)[1], (2, "{\"b\":\n".to_owned()));
    }
}
