-- Version 1. Never edited once released: changes are new files.
-- Times are integer milliseconds since 1970 UTC. `*_seq` are event numbers.

-- Settings of this file: file_id, paused; touched, for a small write that changes nothing else.
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Job types by number, so that a job carries a byte and not a name. plan_id: the phases that the newest process registered.
CREATE TABLE job_type (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  plan_id INTEGER NOT NULL,
  paused INTEGER NOT NULL CHECK (paused IN (0, 1))
) STRICT;

-- Lists of phases by number: a JSON array of [name, version].
CREATE TABLE plan (
  id INTEGER PRIMARY KEY,
  phases TEXT NOT NULL UNIQUE
) STRICT;

-- The hot row. status: 0 pending, 1 running, 2 completed, 3 failed, 4 cancelled.
-- Ids are given out by the log's head, never twice, also after a delete.
CREATE TABLE job (
  id INTEGER PRIMARY KEY,
  type_id INTEGER NOT NULL,
  plan_id INTEGER NOT NULL,
  status INTEGER NOT NULL CHECK (status BETWEEN 0 AND 4),
  priority INTEGER NOT NULL,
  run_at_ms INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  phase_index INTEGER NOT NULL,
  phase_count INTEGER NOT NULL,
  phase_attempt INTEGER NOT NULL,
  crash_count INTEGER NOT NULL,
  created_at_ms INTEGER NOT NULL,
  started_at_ms INTEGER,
  phase_started_at_ms INTEGER,
  finished_at_ms INTEGER CHECK ((finished_at_ms IS NOT NULL) = (status >= 2)),
  deadline_ms INTEGER,
  last_seq INTEGER NOT NULL,
  flags INTEGER NOT NULL,
  unique_key TEXT,
  input TEXT
) STRICT;

-- What can be claimed, in the order of claims, and what is running.
CREATE INDEX job_live ON job (status, type_id, priority DESC, run_at_ms) WHERE status <= 1;
-- What is over, in the order in which it ended.
CREATE INDEX job_over ON job (status, finished_at_ms) WHERE status >= 2;

-- Inputs that are too large for the hot row, which is written again with every change: then job.input is null.
CREATE TABLE payload (
  job_id INTEGER PRIMARY KEY,
  input TEXT NOT NULL
) STRICT;

-- Completed phases. id = job id * 256 + phase index.
CREATE TABLE phase (
  id INTEGER PRIMARY KEY,
  attempt INTEGER NOT NULL,
  started_at_ms INTEGER NOT NULL,
  finished_at_ms INTEGER NOT NULL,
  result TEXT NOT NULL
) STRICT;

-- What handlers saved inside a phase. id as in `phase`.
CREATE TABLE checkpoint (
  id INTEGER PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

-- The error history of jobs.
CREATE TABLE job_error (
  id INTEGER PRIMARY KEY,
  job_id INTEGER NOT NULL,
  phase TEXT,
  attempt INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  since_ms INTEGER,
  cause TEXT NOT NULL,
  message TEXT NOT NULL,
  backtrace TEXT
) STRICT;

CREATE INDEX job_error_job ON job_error (job_id);

-- The log: one row for a change of a job, or for the same change of jobs whose ids follow each other. It stands for `span` events,
-- numbered from `seq`, job by job. prev_seq links the changes of one job; it is prev_step larger for each next job of the row.
-- head: the counters, with the last row of each commit.
CREATE TABLE event (
  seq INTEGER PRIMARY KEY,
  span INTEGER NOT NULL CHECK (span >= 1),
  prev_seq INTEGER NOT NULL,
  prev_step INTEGER NOT NULL,
  job_id INTEGER NOT NULL,
  type_id INTEGER NOT NULL,
  plan_id INTEGER NOT NULL,
  change INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  phase_index INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  data TEXT,
  head TEXT
) STRICT;

-- Unique keys and the job that each stands for. hold: 0 while it is pending, 1 while it is not over, 2 until expires_ms.
CREATE TABLE unique_key (
  type_id INTEGER NOT NULL,
  key TEXT NOT NULL,
  job_id INTEGER NOT NULL,
  hold INTEGER NOT NULL CHECK (hold BETWEEN 0 AND 2),
  expires_ms INTEGER NOT NULL,
  PRIMARY KEY (type_id, key)
) STRICT, WITHOUT ROWID;

-- Where events are sent. name: one of the configuration, else of the jobs in job_endpoint. events: a bit for each kind of event.
-- secrets: a JSON array of keys. problem: why it was disabled, if not by the user.
CREATE TABLE endpoint (
  id INTEGER PRIMARY KEY,
  name TEXT UNIQUE,
  url TEXT NOT NULL,
  events INTEGER NOT NULL,
  secrets TEXT NOT NULL,
  enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
  problem TEXT
) STRICT;

CREATE UNIQUE INDEX endpoint_of_jobs ON endpoint (url, events, secrets) WHERE name IS NULL;

CREATE TABLE job_endpoint (
  job_id INTEGER NOT NULL,
  endpoint_id INTEGER NOT NULL,
  PRIMARY KEY (job_id, endpoint_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX job_endpoint_jobs ON job_endpoint (endpoint_id);

-- The outbox. id = number of the event * 256 + a place. status: 0 pending, 1 delivered, 2 failed.
-- next_at_ms is null while an earlier one of the same endpoint and job is pending.
CREATE TABLE delivery (
  id INTEGER PRIMARY KEY,
  endpoint_id INTEGER NOT NULL,
  job_id INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  url TEXT NOT NULL,
  body TEXT NOT NULL,
  status INTEGER NOT NULL CHECK (status BETWEEN 0 AND 2),
  tries INTEGER NOT NULL,
  next_at_ms INTEGER CHECK (status = 0 OR next_at_ms IS NULL),
  created_at_ms INTEGER NOT NULL,
  finished_at_ms INTEGER CHECK ((finished_at_ms IS NOT NULL) = (status >= 1)),
  last_status INTEGER,
  last_error TEXT
) STRICT;

-- What may be sent, and what stands in line behind it.
CREATE INDEX delivery_next ON delivery (endpoint_id, next_at_ms) WHERE next_at_ms IS NOT NULL;
CREATE INDEX delivery_line ON delivery (endpoint_id, job_id) WHERE status = 0;
CREATE INDEX delivery_over ON delivery (finished_at_ms) WHERE status >= 1;
-- The delivered ones by event, for what goes with the log: among the others it would have to look at each that waits.
CREATE INDEX delivery_done ON delivery (status) WHERE status = 1;
CREATE INDEX delivery_job ON delivery (job_id);

-- The tries of deliveries. answer: the first 2 KiB of what the receiver said.
CREATE TABLE delivery_try (
  id INTEGER PRIMARY KEY,
  delivery_id INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  took_ms INTEGER NOT NULL,
  status INTEGER,
  error TEXT,
  answer TEXT
) STRICT;

CREATE INDEX delivery_try_of ON delivery_try (delivery_id);
