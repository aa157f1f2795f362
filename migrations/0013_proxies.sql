create table proxies (
    name text primary key,
    -- Null once it was removed.
    settings jsonb,
    -- Null where no password is kept.
    username text,
    changed_by text not null,
    changed_at timestamptz not null,
    sequence bigint not null
);
