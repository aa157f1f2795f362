create table sessions (
    id uuid primary key,
    user_id uuid not null,
    epoch bigint not null,
    method text not null,
    opened_at timestamptz not null,
    expires_at timestamptz not null,
    ended_at timestamptz,
    sequence bigint not null
);

create index on sessions (expires_at) where ended_at is null;
