create table events (
    sequence bigint primary key,
    id uuid not null,
    time timestamptz not null,
    subject text not null,
    type text not null,
    project text,
    stage text,
    actor text not null,
    correlation_id uuid not null,
    -- The whole CloudEvent.
    event jsonb not null
);

create index on events (project, stage, sequence);
create index on events (subject text_pattern_ops, sequence);
