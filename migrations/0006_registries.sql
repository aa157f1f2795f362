create table registries (
    host text primary key,
    -- Null once the credentials were removed.
    username text,
    changed_by text not null,
    changed_at timestamptz not null,
    sequence bigint not null
);
