create table tokens (
    id uuid primary key,
    name text not null,
    role text not null,
    created_by text not null,
    created_at timestamptz not null,
    revoked_at timestamptz,
    sequence bigint not null
);
