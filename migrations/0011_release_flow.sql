-- Null where nothing is declared any more; it was the user name alone before.
alter table registries alter column username type jsonb
    using case when username is not null then jsonb_build_object('username', username, 'poll', '1m') end;
alter table registries rename column username to settings;
alter table registries add column signed_in boolean not null default false;
update registries set signed_in = settings is not null;

create table hooks (
    name text primary key,
    -- Null once it was removed.
    settings jsonb,
    has_secret boolean not null,
    changed_by text not null,
    changed_at timestamptz not null,
    sequence bigint not null
);
