create table stages (
    project text not null,
    stage text not null,
    settings jsonb not null,
    archived boolean not null,
    current jsonb,
    active jsonb,
    queue jsonb not null,
    lock jsonb,
    sequence bigint not null,
    primary key (project, stage)
);
