//! Lists come in pages: they are asked for one after another until there are enough rows.

use tidegate_proto::control::v1 as api;

use crate::errors::Result;

/// Rows of a page, at most; the cluster gives no more.
const MOST: u32 = 1_000;

/// Rows of a page for a list of at most so many; 0: all.
pub fn size(limit: usize) -> u32 {
    match u32::try_from(limit) {
        Ok(limit) if (1..=MOST).contains(&limit) => limit,
        Ok(_) | Err(_) => MOST,
    }
}

/// The rows of a list, at most so many; 0: all. `ask` answers with a page's rows and the token of the
/// next page, which is empty behind the last one.
///
/// # Errors
/// The cluster's.
pub async fn gather<T, Answer>(
    limit: usize,
    mut ask: impl FnMut(Option<api::Page>) -> Answer,
) -> Result<Vec<T>>
where
    Answer: Future<Output = Result<(Vec<T>, String)>>,
{
    let mut rows = Vec::new();
    let mut token = String::new();
    loop {
        let size = size(limit);
        let (more, next) = ask(Some(api::Page { size, token })).await?;
        rows.extend(more);
        if limit > 0 && rows.len() >= limit {
            rows.truncate(limit);
            return Ok(rows);
        }
        if next.is_empty() {
            return Ok(rows);
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of 2,500 rows; counts the pages that were asked for.
    async fn gathered(limit: usize) -> (usize, usize) {
        let mut asked = 0;
        let rows = gather(limit, |page| {
            asked += 1;
            let page = page.unwrap();
            let from: usize = page.token.parse().unwrap_or(0);
            let until = (from + page.size as usize).min(2_500);
            let next = if until < 2_500 {
                until.to_string()
            } else {
                String::new()
            };
            std::future::ready(Ok(((from..until).collect(), next)))
        });
        let rows = rows.await.unwrap();
        assert!(
            rows.iter()
                .enumerate()
                .all(|(position, row)| position == *row)
        );
        (rows.len(), asked)
    }

    #[tokio::test]
    async fn pages_are_asked_for_until_there_are_enough_rows() {
        assert_eq!(gathered(0).await, (2_500, 3));
        assert_eq!(gathered(1_200).await, (1_200, 2));
        assert_eq!(gathered(50).await, (50, 1));
        assert_eq!(gathered(9_000).await, (2_500, 3));
    }
}
