create table promotions (
    id uuid primary key,
    project text not null,
    stage text not null,
    source text not null,
    digest text,
    status text not null,
    requested_by text not null,
    requested_at timestamptz not null,
    approvals jsonb not null,
    deployment uuid,
    gate text,
    reason text,
    proof jsonb,
    decided_by text,
    decided_at timestamptz,
    requested_sequence bigint not null,
    sequence bigint not null
);

create index on promotions (requested_sequence);
create index on promotions (project, stage, requested_sequence);

alter table projects add column auto_promote boolean not null default false;

alter table stages add column hold jsonb;
-- The promotion that waits for its gates.
alter table stages add column promotion uuid;

alter table deployments add column origin jsonb not null default '{"kind": "direct"}';
