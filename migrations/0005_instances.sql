create table instances (
    deployment uuid not null,
    name text not null,
    project text not null,
    stage text not null,
    container text,
    address text,
    state text not null,
    healthy boolean,
    exit_code bigint,
    current boolean not null,
    changed_at timestamptz not null,
    sequence bigint not null,
    primary key (deployment, name)
);

-- The containers of a stage that are not history.
create index on instances (project, stage) where current or state <> 'stopped';
