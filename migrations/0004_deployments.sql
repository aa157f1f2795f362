create table deployments (
    id uuid primary key,
    project text not null,
    stage text not null,
    kind text not null,
    image jsonb not null,
    node text not null,
    status text not null,
    requested_by text not null,
    requested_at timestamptz not null,
    dispatched_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    worker text,
    failure jsonb,
    cancel_reason text,
    superseded_by uuid,
    rolled_back_to uuid,
    steps jsonb not null,
    requested_sequence bigint not null,
    sequence bigint not null
);

create index on deployments (requested_sequence);
create index on deployments (project, stage, requested_sequence);
