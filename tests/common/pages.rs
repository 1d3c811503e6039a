//! Everything that a store has, page by page.
#![allow(dead_code)] // each test file uses a part

use wattd::reading::DeviceId;
use wattd::rollup::Bucket;
use wattd::store::{Row, Scan, Store, StoreError, Tier};
use wattd::units::UnixMillis;

/// All rows of a scan.
pub fn all_rows(store: &Store, mut scan: Scan) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    loop {
        let page = smol::block_on(store.scan(scan.clone()))?;
        scan.after = page.rows.last().map(Row::position);
        rows.extend(page.rows);
        if !page.more {
            return Ok(rows);
        }
    }
}

/// All buckets of a device in `[from, to)`.
pub fn all_buckets(
    store: &Store,
    id: DeviceId,
    tier: Tier,
    (from, to): (UnixMillis, UnixMillis),
    now: UnixMillis,
) -> Vec<Bucket> {
    let (mut buckets, mut at) = (Vec::new(), Some(from));
    while let Some(from) = at {
        let page = smol::block_on(store.bucket_page(id, tier, from, to, now)).unwrap();
        buckets.extend(page.buckets);
        at = page.next;
    }
    buckets
}
