alter table projects add column env jsonb not null default '{}';
-- By name: which version is the newest, and who set it when.
alter table projects add column secrets jsonb not null default '{}';
