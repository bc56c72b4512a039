//! The documents of a YAML stream, each with the place where it stands.

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

/// Splits at the marks `---`. A line that starts with it is a mark wherever it stands (YAML 1.2,
/// 9.1.2), so no parser is needed; what follows on the same line belongs to the document.
pub fn split(text: &str) -> Vec<Document> {
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
}
