//! The peer: the same readings in SQLite, with its best-known schemas and the settings that spare the disk.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use rusqlite::{Connection, params};
use wattd::reading::{Reading, Relay};
use wattd::rollup::Bucket;

/// How the readings are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// A plain table with an index by device and time, newest first: what people write.
    Indexed,
    /// No row numbers, clustered by time: the smallest, and the best to write.
    ByTime,
    /// No row numbers, clustered by device and time: the best to read a device's range.
    ByDevice,
}

impl Schema {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Indexed => "sqlite-indexed",
            Self::ByTime => "sqlite-by-time",
            Self::ByDevice => "sqlite-by-device",
        }
    }

    const fn sql(self) -> &'static str {
        match self {
            Self::Indexed => {
                "CREATE TABLE IF NOT EXISTS readings(device INTEGER, ts INTEGER, power INTEGER, voltage INTEGER,
                   current INTEGER, energy INTEGER, relay INTEGER);
                 CREATE INDEX IF NOT EXISTS by_device ON readings(device, ts DESC);"
            }
            Self::ByTime => {
                "CREATE TABLE IF NOT EXISTS readings(device INTEGER, ts INTEGER, power INTEGER, voltage INTEGER,
                   current INTEGER, energy INTEGER, relay INTEGER, PRIMARY KEY(ts, device)) WITHOUT ROWID;"
            }
            Self::ByDevice => {
                "CREATE TABLE IF NOT EXISTS readings(device INTEGER, ts INTEGER, power INTEGER, voltage INTEGER,
                   current INTEGER, energy INTEGER, relay INTEGER, PRIMARY KEY(device, ts)) WITHOUT ROWID;"
            }
        }
    }
}

type Columns = (i64, i64, i64, Option<i64>, Option<i64>, Option<i64>, Option<i64>);

pub struct Sqlite(Connection);

impl Sqlite {
    pub fn open(path: &Path, schema: Schema) -> Self {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "synchronous", "NORMAL").unwrap();
        connection.execute_batch(schema.sql()).unwrap();
        Self(connection)
    }

    /// One transaction.
    pub fn insert(&mut self, rows: impl Iterator<Item = (usize, Reading)>) {
        let write = self.0.transaction().unwrap();
        {
            let mut insert =
                write.prepare_cached("INSERT OR IGNORE INTO readings VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)").unwrap();
            for (device, r) in rows {
                let relay = r.relay.map(|relay| i64::from(relay == Relay::On));
                let (voltage, current) = (r.voltage.map(|v| i64::from(v.get())), r.current.map(|i| i64::from(i.get())));
                let energy = r.counter.map(|wh| wh.get() as i64);
                let power = i64::from(r.power.get());
                insert.execute(params![device as i64, r.time.get(), power, voltage, current, energy, relay]).unwrap();
            }
        }
        write.commit().unwrap();
    }

    /// Everything in the main file.
    pub fn checkpoint(&self) {
        self.0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }

    /// Bytes of its pages.
    pub fn size(&self) -> u64 {
        self.checkpoint();
        let get = |name: &str| self.0.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).unwrap();
        (get("page_count") * get("page_size")) as u64
    }

    fn rows(&self, sql: &str, args: &[i64]) -> usize {
        let mut select = self.0.prepare_cached(sql).unwrap();
        let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Columns> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
        };
        let rows: Vec<Columns> =
            select.query_map(rusqlite::params_from_iter(args), read).unwrap().map(Result::unwrap).collect();
        std::hint::black_box(&rows).len()
    }

    pub fn newest(&self, device: usize, count: usize) -> usize {
        self.rows("SELECT * FROM readings WHERE device = ?1 ORDER BY ts DESC LIMIT ?2", &[device as i64, count as i64])
    }

    pub fn range(&self, device: usize, from: i64, to: i64) -> usize {
        let sql = "SELECT * FROM readings WHERE device = ?1 AND ts >= ?2 AND ts < ?3 ORDER BY ts";
        self.rows(sql, &[device as i64, from, to])
    }

    /// All of `devices` devices, in the order in which the store gives them.
    pub fn range_of_all(&self, devices: usize, from: i64, to: i64) -> usize {
        let list: Vec<_> = (0..devices).map(|n| n.to_string()).collect();
        let list = list.join(",");
        let sql =
            format!("SELECT * FROM readings WHERE device IN ({list}) AND ts >= ?1 AND ts < ?2 ORDER BY ts, device");
        self.rows(&sql, &[from, to])
    }

    /// A table of hours, filled with ours.
    pub fn insert_hours(&mut self, hours: impl Iterator<Item = (usize, Bucket)>) {
        self.0
            .execute_batch(
                "CREATE TABLE hours(device INTEGER, ts INTEGER, energy INTEGER, mean INTEGER, min INTEGER, max INTEGER,
                   readings INTEGER);
                 CREATE INDEX hours_by_device ON hours(device, ts DESC);",
            )
            .unwrap();
        let write = self.0.transaction().unwrap();
        for (device, hour) in hours {
            let range = hour.range.map_or((0, 0), |range| (range.min.get(), range.max.get()));
            let mean = hour.power.get().checked_div(hour.observed.as_secs()).unwrap_or(0);
            let values = params![
                device as i64,
                hour.start.get(),
                hour.energy.get() as i64,
                mean as i64,
                range.0,
                range.1,
                hour.readings
            ];
            write.execute("INSERT INTO hours VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", values).unwrap();
        }
        write.commit().unwrap();
        self.checkpoint();
    }

    pub fn hours(&self, device: usize, from: i64, to: i64) -> usize {
        let sql = "SELECT * FROM hours WHERE device = ?1 AND ts >= ?2 AND ts < ?3 ORDER BY ts";
        self.rows(sql, &[device as i64, from, to])
    }
}
